"""network, decode and image of `scripts/benchmark.py`."""

import argparse
import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax

from scripts.paper.side_by_side import Table
from scripts.timing import detection_parts, quiet_pairs
from scripts.timing.benchmark_table import GEMM, OURS, TORCH, timed_row, timed_table
from scripts.timing.detection_parts import NETWORKS, PARTS, SETTINGS, SIZES
from scripts.timing.own_process import OwnProcess
from scripts.timing.quiet_pairs import Arm
from triplet_det.data import image_files
from triplet_det.detection import batches
from triplet_det.export import parse_size

MB = 1e6


def add_network_arguments(parser: argparse.ArgumentParser, *, hg: str = '52') -> None:
  parser.add_argument('--hg', choices=list(SIZES), default=hg, help='depth of the hourglass (default: %(default)s)')
  parser.add_argument('--detector', choices=list(NETWORKS), default='centernet', help='default: %(default)s')


def add_twin_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--size', type=int, help='side of the images, pixels (default: 511, tiny 127)')
  parser.add_argument('--against', choices=[TORCH], help='measure the PyTorch twin too, by turns (extra torch)')
  how = "the twin's running maxima: line by line, or torch.cummax (default: %(default)s)"
  parser.add_argument('--pools', choices=['lines', 'cummax'], default='lines', help=how)


def add_network_command(parser: argparse.ArgumentParser) -> None:
  add_network_arguments(parser)
  add_twin_arguments(parser)


def network(arguments: argparse.Namespace, measure: Mapping) -> Table:
  """The network on an image and its mirror image, norms folded, as detection runs it."""
  model, side = model_and_side(arguments)
  flops = detection_parts.network_flops(model, side, side)
  settings = dict(hg=arguments.hg, detector=arguments.detector, size=side)
  return against_twin(
    'network',
    f'Network: {side} x {side} pixels, image and mirror image',
    f'{NETWORKS[arguments.detector]} {arguments.hg}',
    makers={OURS: 'scripts.timing.detection_parts:network', TORCH: 'scripts.timing.torch_twin:network'},
    given=dict(model=model, side=side),
    flops=flops,
    settings=settings,
    arguments=arguments,
    measure=measure,
  )


def model_and_side(arguments: argparse.Namespace) -> tuple[dict, int]:
  return detection_parts.model_of(arguments.detector, arguments.hg), arguments.size or SIZES[arguments.hg]


def against_twin(
  name: str,
  title: str,
  row: str,
  *,
  makers: Mapping[str, str],
  given: Mapping,
  flops: int,
  settings: Mapping,
  arguments: argparse.Namespace,
  measure: Mapping,
) -> Table:
  """Our program and, if asked for, the twin, each in a process of its own, by turns with the GEMM.

  Args:
    name, title: of the table.
    row: title of its row.
    makers: OURS and TORCH -> what makes the program, see `own_process`.
    given: to both makers.
    flops: of a run.
    settings: for the table.
    arguments: `against` and `pools`.
    measure: of `quiet_pairs.take_turns`.
  """
  notes, gemm, gemm_flops = [], *quiet_pairs.gemm()
  with contextlib.ExitStack() as stack:
    if arguments.against:  # first, so that there are never more than two programs in memory
      twin, format_note = better_format(makers[TORCH], pools=arguments.pools, **given)
      stack.enter_context(twin)
      notes.append(f'twin: checked against the golden network; {format_note}; pools: {arguments.pools}')
    ours = stack.enter_context(OwnProcess(makers[OURS], cache_environment(), **given))
    arms = {OURS: Arm(ours)} | ({TORCH: Arm(twin)} if arguments.against else {}) | {GEMM: gemm}
    turns = quiet_pairs.take_turns(arms, **measure)
    peaks = {'peak MB': ours.peak_memory() / MB}
    if arguments.against:
      peaks['torch peak MB'] = twin.peak_memory() / MB
  if arguments.against:
    settings = {**settings, 'against': arguments.against, 'pools': arguments.pools}
  notes.append('peak: most memory at once since the end of the first run, of a process that does nothing else')
  made = timed_row(row, turns, gemm_flops, against=arguments.against, flops=flops, beside=peaks)
  return timed_table(name, title, [made], turns, gemm_flops, settings, [f'{flops / 1e9:.1f} GFLOP', *notes])


def better_format(maker: str, **given) -> tuple[OwnProcess, str]:
  """The twin in the memory format that is faster in one run after the first, to be closed; and both times."""
  seconds, best = {}, None
  for channels_last in (True, False):
    twin = OwnProcess(maker, channels_last=channels_last, **given)
    name = 'channels_last' if channels_last else 'contiguous'
    twin()
    seconds[name] = quiet_pairs.sample(Arm(twin)).seconds
    if best is None:
      best = name, twin
    elif seconds[name] < seconds[best[0]]:
      best[1].close()
      best = name, twin
    else:
      twin.close()
  told = ', '.join(f'{name} {1e3 * value:.4g} ms' for name, value in seconds.items())
  return best[1], f'memory format: {best[0]} (one run each: {told})'


def cache_environment() -> dict[str, str]:
  """Lets other processes find what is compiled already."""
  folder = jax.config.jax_compilation_cache_dir
  return {'JAX_COMPILATION_CACHE_DIR': folder, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '1'} if folder else {}


def add_decode_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument('--detector', choices=list(NETWORKS), default='centernet', help='default: %(default)s')
  parser.add_argument('--settings', choices=list(SETTINGS), default='sound', help='of the test (default: %(default)s)')
  first = '; the first with the first of the others is the base, one is changed at a time'
  parser.add_argument('--top_k', nargs='+', type=int, default=[70, 20, 100, 200], help='peaks per heatmap' + first)
  parser.add_argument('--classes', nargs='+', type=int, default=[80, 5, 20, 400], help='see --top_k')
  sizes = [(375, 500), (480, 640), (960, 1280)]
  parser.add_argument(
    '--sizes', nargs='+', type=parse_size, default=sizes, metavar='WxH', help='of images; see --top_k'
  )


def decode(arguments: argparse.Namespace, measure: Mapping) -> Table:
  """Peaks, pairs, center filter and soft-NMS, from maps on the device to the best 100 boxes on the host."""
  base = dict(top_k=arguments.top_k[0], classes=arguments.classes[0], size=arguments.sizes[0])
  cases = [base]
  for name, values in (('top_k', arguments.top_k), ('classes', arguments.classes), ('size', arguments.sizes)):
    cases += [{**base, name: value} for value in values[1:]]
  gemm, gemm_flops = quiet_pairs.gemm()
  settings, centers = SETTINGS[arguments.settings][arguments.detector], arguments.detector == 'centernet'
  arms, boxes = {}, {}
  for case in cases:
    title = f'K {case["top_k"]}, {case["classes"]} classes, {case["size"][1]} x {case["size"][0]}'
    one = dataclasses.replace(settings, top_k=case['top_k'])
    run = detection_parts.compile_decoding(one, *case['size'], case['classes'], centers=centers)
    arms[title], boxes[title] = Arm(run), len(run().scores)
  turns = quiet_pairs.take_turns({**arms, GEMM: gemm}, **measure)
  first = next(iter(arms))
  rows = []
  for title in arms:
    row = timed_row(title, turns, gemm_flops, arm=title, beside={'boxes': boxes[title]})
    grown = turns.ratios(title, first)
    rows.append(
      dataclasses.replace(
        row, runs={f'round {i}': {**row.runs[f'round {i}'], 'to the first': grown[i]} for i in turns.rounds}
      )
    )
  given = dict(detector=arguments.detector, quirks=arguments.settings, cases=list(arms))
  title = 'Decoding to the best boxes, of an image and its mirror image'
  return timed_table('decode', title, rows, turns, gemm_flops, given)


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
  add_network_arguments(parser)
  parser.add_argument('--settings', choices=list(SETTINGS), default='sound', help='of the test (default: %(default)s)')
  parser.add_argument('--size', type=parse_size, default=(375, 500), metavar='WxH', help='pixels (default: 500x375)')
  parser.add_argument('--image', type=Path, help='a picture instead of noise of that size')
  parser.add_argument('--scale', type=float, default=1.0, help='the image is resized by it (default: %(default)s)')


def image(arguments: argparse.Namespace, measure: Mapping) -> Table:
  """A whole image, from pixels in host memory to boxes, and its parts from inputs that are ready."""
  picture = detection_parts.noise(*arguments.size)
  if arguments.image:
    picture = image_files.decode_image(arguments.image.read_bytes(), str(arguments.image))
  settings = dataclasses.replace(
    SETTINGS[arguments.settings][arguments.detector], scales=(arguments.scale,), center_scale=arguments.scale
  )
  model = detection_parts.model_of(arguments.detector, arguments.hg)
  compiled = detection_parts.compile_parts(*detection_parts.random_weights(model), settings, picture, objects=True)
  gemm, gemm_flops = quiet_pairs.gemm()
  turns = quiet_pairs.take_turns({part: Arm(run) for part, run in compiled.parts.items()} | {GEMM: gemm}, **measure)
  (canvas,) = batches.canvases_of(*picture.shape[:2], settings)
  flops = detection_parts.network_flops(model, *canvas)
  rows = [
    timed_row(part, turns, gemm_flops, arm=part, flops=flops if part in ('network', 'whole image') else None)
    for part in PARTS
  ]
  height, width = picture.shape[:2]
  given = {name: getattr(arguments, name) for name in ('hg', 'detector', 'scale')}
  given |= dict(quirks=arguments.settings, width=width, height=height)
  notes = [f'{compiled.pairs} pairs with a score, {compiled.boxes} boxes; canvas {canvas[1]} x {canvas[0]}']
  title = f'{NETWORKS[arguments.detector]} {arguments.hg}: an image of {width} x {height} pixels and its mirror image'
  return timed_table('image', title, rows, turns, gemm_flops, given, notes)
