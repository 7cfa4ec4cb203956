"""Weights and detection program in one file: `python -m triplet_det.export --checkpoint runs/shapes --out shapes.zip`.

The programs take uint8 canvases and give boxes: normalisation, mirror image, network with its norms folded into the
convolutions, pairs, triplets and soft-NMS, as StableHLO for every platform named. `triplet_det.load('shapes.zip')` runs
the file without the code of the network; `exported` describes it.
"""

import argparse
import dataclasses
import datetime
import io
import json
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from flax import traverse_util
from jax import export as jax_export

import triplet_det
from triplet_det.detection import exported_contents, inference, loading, onnx_export, onnx_file, trained_network
from triplet_det.detection.batches import Canvases, canvases_of
from triplet_det.detection.canvas import Placement
from triplet_det.detection.exported_file import WEIGHTS
from triplet_det.detection.settings import Settings, change, settings_for
from triplet_det.detection.sidecar import (
  FORMAT,
  MAX_CANVASES,
  MAX_SIDE,
  ONNX,
  SIDECAR,
  SUFFIXES,
  ZIP,
  Program,
  Sidecar,
  check_sidecar,
)
from triplet_det.models import detector, input_pixels
from triplet_det.run import checkpoints, command_line, output_paths

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
COCO_SIZES = ((480, 640), (640, 480), (640, 640))  # (height, width)

ARGUMENTS = {
  'weights': 'mapping of name to array, as weights.npz has them',
  'canvases': 'a list with, for each scale, uint8 RGB [B, H, W, 3]',
  'border': 'a list with, for each scale, float32 [B, 2] (x, y): canvas pixels left of and above the resized image',
  'size': 'a list with, for each scale, float32 [B, 2] (x, y): width and height of the resized image',
  'scale': 'a list with, for each scale, float32 [B, 2] (x, y): resized / original',
}
RESULTS = {
  'boxes': 'float32 [B, D, 4] x1 y1 x2 y2, pixels of the original image, best first',
  'scores': 'float32 [B, D]',
  'classes': 'int32 [B, D], positions in categories',
  'valid': 'bool [B, D], False for padding',
}
PREPROCESSING = {
  'image': 'uint8 RGB, turned upright by its EXIF orientation',
  'resize': 'for each scale s in settings.scales, times settings.image_side / max(height, width) unless that is 0, to '
  'int(height * s) x int(width * s), at least 1 x 1, by OpenCV: INTER_LINEAR, or INTER_AREA if s is below 0.5',
  'canvas': 'zeros, the resized image from row H // 2 - height // 2 and column W // 2 - width // 2 on; docs/onnx.md '
  'has what settings.nominal_scale and settings.cut_last_line change',
  'normalisation': 'in the program: (value / 255 - mean) / std',
}  # and the mean and std of the network's pixels


def detection_program(apply_fn: Callable, settings: Settings) -> Callable:
  """All of detection as one function of plain containers, with ARGUMENTS and RESULTS."""

  def program(weights, canvases, border, size, scale):
    variables = traverse_util.unflatten_dict(weights, sep='/')
    placements = [Placement(*where) for where in zip(border, size, scale)]
    found = [inference.propose(apply_fn, settings, variables, *one) for one in zip(canvases, placements)]
    detections, _ = inference.finish(found, settings)
    return {name: getattr(detections, name) for name in RESULTS}

  return program


def export(
  checkpoint: str,
  out: Path,
  *,
  sizes: Sequence[tuple[int, int]] = COCO_SIZES,
  platforms: Sequence[str] = ('cpu',),
  batch_size: int = 1,
  sound_nms: bool = False,
  **changes,
) -> Sidecar:
  """Writes the file, whole or not at all.

  Args:
    checkpoint: as for `load`.
    out: ends in .zip or .onnx.
    sizes: (height, width) of images; each gets a program for its canvas, equal ones share it.
    platforms: of PLATFORMS.
    batch_size: images per call of a program; a call with fewer is padded.
    sound_nms: replaces the published soft-NMS with its stale rows, which works on the host, by the sound one.
    changes: of single settings, as for `load`.

  Returns:
    What the file says about itself.

  Raises:
    ValueError: an unknown platform or setting, settings that do not fit the network or cannot be exported.
    FileNotFoundError: no checkpoint there.
  """
  out = output_paths.local(str(out))
  _check(checkpoint, out, sizes, platforms, batch_size)
  variables, record = loading.read_weights(checkpoint)
  settings = change(settings_for(record.test), changes)
  if settings.stale_rows and sound_nms:
    settings = dataclasses.replace(settings, stale_rows=False)
  if settings.stale_rows:
    raise ValueError(
      f'{checkpoint} is tested with test.stale_rows, the published soft-NMS that leaves stale rows; it works on the '
      'host and cannot become part of a program: export with --sound_nms, which takes the sound soft-NMS instead'
    )
  module, folded = trained_network.folded(detector.build(record.model), variables)
  trained_network.check_canvases(module, settings)
  program = detection_program(trained_network.last_stack(module), settings)
  weights = traverse_util.flatten_dict(folded, sep='/')

  every_canvases = list(dict.fromkeys(canvases_of(*size, settings) for size in sizes))
  for one in every_canvases:
    size = 3 * batch_size * sum(height * width for height, width in one)
    if size > MAX_CANVASES or max(map(max, one)) > MAX_SIDE:
      raise ValueError(
        f'{batch_size} image(s) on {Program("", one)} pixels are {size:,} bytes; a file takes {MAX_CANVASES:,}, and '
        f'sides of {MAX_SIDE:,}: give smaller --sizes, --scales or --batch_size'
      )
  mean, std = input_pixels.STATISTICS[module.config.pixels]
  programs = [Program('programs/' + '_'.join(f'{w}x{h}' for h, w in one), one) for one in every_canvases]
  sidecar = Sidecar(
    format=FORMAT,
    programs=tuple(programs),
    platforms=tuple(platforms),
    batch_size=batch_size,
    arguments=ARGUMENTS,
    results=RESULTS,
    preprocessing=PREPROCESSING | {'mean': mean.tolist(), 'std': std.tolist()},
    settings=dataclasses.asdict(settings),
    categories=tuple(record.categories.to_coco()),
    checkpoint=dict(path=str(checkpoint), step=record.step, metrics=dict(record.metrics)),
    versions=dict(
      triplet_det=triplet_det.__version__, jax=jax.__version__, date=datetime.datetime.now(datetime.UTC).isoformat()
    ),
  )
  check_sidecar(json.loads(json.dumps(dataclasses.asdict(sidecar))), out)
  unfinished = output_paths.unfinished(out)  # which no command takes for a detector; the next export replaces it
  if out.suffix == ONNX:
    write_onnx(unfinished, sidecar, program, weights)
    unfinished.replace(out)
    return sidecar
  with zipfile.ZipFile(unfinished, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr(SIDECAR, json.dumps(dataclasses.asdict(sidecar), indent=1))
    for one in programs:
      archive.writestr(one.file, lower(program, weights, one.canvases, settings, platforms, batch_size))
    archive.writestr(zipfile.ZipInfo(WEIGHTS), _as_npz(weights))
  unfinished.replace(out)
  return sidecar


def lower(
  program: Callable, weights: dict, canvases: Canvases, settings: Settings, platforms: Sequence[str], batch_size: int
) -> bytes:
  """The program for canvases of these sizes, serialised, and accepted by `exported_contents`."""
  start = time.monotonic()
  shaped = jax.ShapeDtypeStruct
  pairs = [shaped((batch_size, 2), np.float32) for _ in canvases]
  pixels = [shaped((batch_size, *one, 3), np.uint8) for one in canvases]
  shapes = jax.tree.map(lambda a: shaped(a.shape, a.dtype), weights)
  arguments = shapes, pixels, pairs, pairs, pairs
  exported = jax_export.export(jax.jit(program), platforms=tuple(platforms))(*arguments)
  exported_contents.check_program(exported, arguments, settings.max_detections, f'the program for {canvases}')
  try:
    serialised = exported.serialize()
  except ImportError as error:
    raise ImportError("exporting needs the package flatbuffers: pip install 'triplet_det[export]'") from error
  logging.info('canvas %s: %.2f MB in %.1f s', Program('', canvases), len(serialised) / 1e6, time.monotonic() - start)
  return bytes(serialised)


def write_onnx(path: Path, sidecar: Sidecar, program: Callable, weights: dict) -> None:
  """The programs as one ONNX graph, with the sidecar in its metadata."""
  scales, size = len(sidecar.settings['scales']), sidecar.batch_size
  names = onnx_file.arguments(scales)

  def of_arrays(*arrays):
    found = program(weights, *(arrays[i::4] for i in range(4)))
    return tuple(found[name] for name in onnx_file.RESULTS)

  models = []
  for one in sidecar.programs:
    pair = jax.ShapeDtypeStruct((size, 2), np.float32)
    shapes = [x for canvas in one.canvases for x in (jax.ShapeDtypeStruct((size, *canvas, 3), np.uint8), *[pair] * 3)]
    models.append(onnx_export.convert(of_arrays, shapes, (names, onnx_file.RESULTS)))
    logging.info('canvas %s is converted', one)
  onnx_export.write(path, models, [one.canvases for one in sidecar.programs], names[::4], dataclasses.asdict(sidecar))


def _check(checkpoint, out: Path, sizes, platforms: Sequence[str], batch_size: int) -> None:
  if loading.is_exported(checkpoint):
    raise ValueError(f'{checkpoint} is exported already: give the run folder')
  if out.suffix not in SUFFIXES:
    raise ValueError(f'the exported file is a zip or ONNX, its name must end in {ZIP} or {ONNX}: got {out}')
  if out.suffix == ONNX and tuple(platforms) != ('cpu',):
    raise ValueError(f'an ONNX file runs wherever onnxruntime does: leave --platforms {" ".join(platforms)} out')
  unknown = [one for one in platforms if one not in PLATFORMS]
  if unknown or not platforms:
    raise ValueError(f'unknown platform {", ".join(unknown) or "(none given)"}; possible: {", ".join(PLATFORMS)}')
  if not sizes or batch_size < 1:
    raise ValueError(f'exporting needs at least one size and one image per batch, got {len(sizes)} and {batch_size}')
  output_paths.make_place('--out', out)
  output_paths.check_apart([out, output_paths.unfinished(out)], checkpoints.folders_of(checkpoint))


def _as_npz(weights: dict[str, np.ndarray]) -> bytes:
  content = io.BytesIO()
  np.savez(content, **weights)
  return content.getvalue()


def parse_size(text: str) -> tuple[int, int]:
  """'640x480', width x height -> (480, 640); an ArgumentTypeError says what was expected."""
  parts = text.lower().split('x')
  if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
    raise argparse.ArgumentTypeError(f'{text!r} is not a size: WIDTHxHEIGHT in pixels, such as 640x480')
  return int(parts[1]), int(parts[0])


def main() -> None:
  parser = argparse.ArgumentParser(prog='python -m triplet_det.export', description='Packs a detector into one file.')
  parser.add_argument('--checkpoint', required=True, help='run folder, checkpoint folder, a link, or demo')
  parser.add_argument('--out', required=True, help='the file, ending in .zip or .onnx')
  sizes = 'image sizes WIDTHxHEIGHT, each a program for its canvas (default: 640x480 480x640 640x640)'
  parser.add_argument('--sizes', nargs='+', type=parse_size, default=COCO_SIZES, metavar='WxH', help=sizes)
  parser.add_argument('--platforms', nargs='+', default=['cpu'], help=f'of {", ".join(PLATFORMS)} (default: cpu)')
  parser.add_argument('--batch_size', type=int, default=1, help='images per call (default %(default)s)')
  parser.add_argument('--sound_nms', action='store_true', help='instead of the published soft-NMS with stale rows')
  command_line.add_settings_flags(parser)
  arguments = command_line.parse(parser)
  changes = command_line.changes_of(arguments)
  options = dict(sizes=arguments.sizes, platforms=arguments.platforms, batch_size=arguments.batch_size)
  with command_line.misfits_in_one_line():
    out = output_paths.local(arguments.out)
    sidecar = export(arguments.checkpoint, out, **options, sound_nms=arguments.sound_nms, **changes)
    canvases = ', '.join(map(str, sidecar.programs))
    size = out.stat().st_size / 1e6
    print(f'{out}: {size:.1f} MB, canvases {canvases}, for {", ".join(sidecar.platforms)}')


if __name__ == '__main__':
  main()
