"""Images and videos in, boxes out: `python -m triplet_det.predict --checkpoint runs/shapes --out boxes PATH...`.

Over many images: the same command continues a killed run; `--shard 3/16` does the third of sixteen shares, and
`--merge` joins them when all are done. In Python: `triplet_det.load`.
"""

import argparse
import contextlib
import sys

from triplet_det.data import image_files
from triplet_det.detection import loading
from triplet_det.detection.loading import load
from triplet_det.devices import compiler
from triplet_det.pictures import video
from triplet_det.prediction import find_files, over_files
from triplet_det.prediction.merge_parts import merge
from triplet_det.prediction.parts_on_disk import Shard, Summary
from triplet_det.run import command_line, output_paths
from triplet_det.run.in_use import in_use

_THRESHOLD = 0.3


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog='python -m triplet_det.predict', description='Detects objects in images; boxes are x1 y1 x2 y2 in pixels.'
  )
  parser.add_argument('paths', nargs='*', help='images, videos, folders or glob patterns')
  parser.add_argument('--checkpoint', help='run folder, checkpoint folder, exported file, a link, or demo')
  parser.add_argument('--out', required=True, help='folder for detections.json and the drawings')
  parser.add_argument('--threshold', type=float, help=f'lowest score (default {_THRESHOLD})')
  parser.add_argument('--batch_size', type=int, default=8, help='images per batch (default %(default)s)')
  limit = 'largest image and canvas, in pixels: others are left out (default %(default)s)'
  parser.add_argument('--max_pixels', type=int, default=image_files.MAX_PIXELS, metavar='N', help=limit)
  command_line.add_settings_flags(parser)
  parser.add_argument('--coco', action='store_true', help='also write coco_results.json, boxes of all scores')
  parser.add_argument('--annotations', help='COCO JSON with the image and category ids for --coco')
  parser.add_argument('--shard', default='1/1', metavar='I/N', help='do this share only, the first of 16 is 1/16')
  parser.add_argument('--merge', action='store_true', help='join the parts of all shards in --out; detects nothing')
  parser.add_argument('--figures', action='store_true', help='also draw heatmaps, and pairs kept and rejected')
  parser.add_argument('--no_drawings', action='store_true', help='write the JSON only')
  cache = f'{command_line.CACHE_HELP} (default %(default)s)'
  parser.add_argument('--compilation_cache', default=command_line.CACHE, help=cache)
  arguments = command_line.parse(parser)
  of_shards = 'threshold', 'coco', 'annotations', 'figures', 'no_drawings', 'batch_size', 'max_pixels'
  given = [name for name in of_shards if getattr(arguments, name) != parser.get_default(name)]
  given += command_line.changes_of(arguments)
  if arguments.merge and (arguments.paths or arguments.checkpoint):
    parser.error('--merge joins what is in --out: give neither paths nor --checkpoint with it')
  if arguments.merge and given:
    parser.error(f'--merge joins what the shards were asked for: give --{given[0]} to them')
  arguments.threshold = _THRESHOLD if arguments.threshold is None else arguments.threshold
  if not arguments.merge and not (arguments.paths and arguments.checkpoint):
    parser.error('--checkpoint and at least one image, video, folder or pattern are needed')
  if arguments.figures and arguments.no_drawings:
    parser.error('--figures draws, --no_drawings forbids it: give one of the two')
  if arguments.figures and (arguments.shard != '1/1' or loading.is_exported(arguments.checkpoint)):
    parser.error('--figures needs a checkpoint, not an exported file, and all images in one process')
  if arguments.max_pixels < 1:
    parser.error(f'--max_pixels is {arguments.max_pixels}: give at least 1, such as {image_files.MAX_PIXELS}')
  if not 0 <= arguments.threshold <= 1:
    parser.error(f'--threshold is {arguments.threshold}: scores are from 0 to 1, give one of these')
  return arguments


def _run(arguments: argparse.Namespace, held: contextlib.ExitStack) -> tuple[Summary, int]:
  """Does what the command says and tells how it went, and how many files were lost before; `held` are the folder and
  the shard, from then on."""
  out, advice = output_paths.local(arguments.out), 'give another --out'
  if arguments.merge:
    held.enter_context(in_use(out, advice))
    return merge(out), 0
  shard = Shard.parse(arguments.shard)
  paths, lost = find_files.find_images(arguments.paths)
  annotations = arguments.annotations and output_paths.local(arguments.annotations)
  changes = command_line.changes_of(arguments)
  output_paths.make_folder('--out', out)
  held.enter_context(in_use(out, advice, shared=shard.count > 1))  # shards share the folder, each is in one process
  held.enter_context(in_use(out, advice, part=shard.path(out).stem))
  few = len(paths) if not any(map(video.is_video, paths)) else arguments.batch_size
  sizes = dict(batch_size=min(arguments.batch_size, few), max_pixels=arguments.max_pixels)
  loaded = load(arguments.checkpoint, **sizes, **changes)
  wanted = dict(coco=arguments.coco, annotations=annotations, draw=not arguments.no_drawings, figures=arguments.figures)
  outcome = over_files.predict(loaded, paths, out, threshold=arguments.threshold, shard=shard, **wanted)
  rate = outcome.images / outcome.seconds
  print(
    f'{outcome.images} images in {outcome.seconds:.1f} s, {rate:.2f} images/s; programs compiled: {outcome.programs}'
  )
  return outcome.summary, lost


def main() -> None:
  arguments = _parse()
  compiler.keep_programs(arguments.compilation_cache)
  with command_line.misfits_in_one_line(), contextlib.ExitStack() as held:
    summary, lost = _run(arguments, held)
  for path, reason in summary.left_out.items():
    print(f'left out: {reason if reason.startswith(path) else f"{path}: {reason}"}', file=sys.stderr)
  print(f'{summary.boxes} boxes in {summary.images} images above {summary.threshold}: {arguments.out}')
  sys.exit(1 if summary.left_out or lost else 0)


if __name__ == '__main__':
  main()
