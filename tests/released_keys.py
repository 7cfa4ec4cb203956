"""Names and shapes of the released state dicts, written down from the published architecture: the import's oracle."""

Shapes = dict[str, tuple[int, ...]]


def _conv(key: str, inputs: int, outputs: int, size: int, *, bias: bool = False) -> Shapes:
  return {f'{key}.weight': (outputs, inputs, size, size)} | ({f'{key}.bias': (outputs,)} if bias else {})


def _norm(key: str, width: int) -> Shapes:
  return {f'{key}.{leaf}': (width,) for leaf in ('weight', 'bias', 'running_mean', 'running_var')}


def _block(key: str, inputs: int, outputs: int, size: int) -> Shapes:
  return _conv(f'{key}.conv', inputs, outputs, size) | _norm(f'{key}.bn', outputs)


def _residual(key: str, inputs: int, outputs: int, stride: int = 1) -> Shapes:
  shapes = _conv(f'{key}.conv1', inputs, outputs, 3) | _norm(f'{key}.bn1', outputs)
  shapes |= _conv(f'{key}.conv2', outputs, outputs, 3) | _norm(f'{key}.bn2', outputs)
  if stride != 1 or inputs != outputs:
    shapes |= _conv(f'{key}.skip.0', inputs, outputs, 1) | _norm(f'{key}.skip.1', outputs)
  return shapes


def _hourglass(key: str, dims: tuple[int, ...], blocks: tuple[int, ...]) -> Shapes:
  """up1: residuals at this width; low1: down; low2: what lies below; low3: back."""
  here, below, count = dims[0], dims[1], blocks[0]
  shapes = {}
  for i in range(count):
    shapes |= _residual(f'{key}.up1.{i}', here, here)
    shapes |= _residual(f'{key}.low1.{i}', below if i else here, below, 1 if i else 2)
    shapes |= _residual(f'{key}.low3.{i}', below, here if i == count - 1 else below)
  if len(dims) > 2:
    return shapes | _hourglass(f'{key}.low2', dims[1:], blocks[1:])
  for i in range(blocks[1]):
    shapes |= _residual(f'{key}.low2.{i}', below, below)
  return shapes


def _pooling(key: str, width: int, pooled: int, *, cascade: bool) -> Shapes:
  shapes = _block(f'{key}.p1_conv1', width, pooled, 3) | _block(f'{key}.p2_conv1', width, pooled, 3)
  shapes |= _conv(f'{key}.p_conv1', pooled, width, 3) | _norm(f'{key}.p_bn1', width)
  shapes |= _conv(f'{key}.conv1', width, width, 1) | _norm(f'{key}.bn1', width)
  shapes |= _block(f'{key}.conv2', width, width, 3)
  if cascade:
    for i in (1, 2):
      shapes |= _block(f'{key}.look_conv{i}', width, pooled, 3)
      shapes |= _conv(f'{key}.P{i}_look_conv', pooled, pooled, 3)
  return shapes


def released_shapes(config: dict) -> Shapes:
  """Of a network with the keys of `detector.DetectorConfig`; convolutions as OIHW."""
  c = {'center_branch': True, 'cascade_corner_pooling': True, **config}
  first, head, pooled = c['dims'][0], c['head_width'], c['pool_width']
  shapes = _block('pre.0', 3, c['stem_width'], 7) | _residual('pre.1', c['stem_width'], first, 2)
  for s in range(c['stacks']):
    shapes |= _hourglass(f'kps.{s}', c['dims'], c['blocks']) | _block(f'cnvs.{s}', first, head, 3)
    for kind in ('tl', 'br', 'ct') if c['center_branch'] else ('tl', 'br'):
      cascade = kind != 'ct' and c['cascade_corner_pooling']
      shapes |= _pooling(f'{kind}_cnvs.{s}', head, pooled, cascade=cascade)
      outputs = {'heats': c['num_classes'], 'regrs': 2} | ({} if kind == 'ct' else {'tags': 1})
      for name, channels in outputs.items():
        shapes |= _conv(f'{kind}_{name}.{s}.0.conv', head, first, 3, bias=True)
        shapes |= _conv(f'{kind}_{name}.{s}.1', first, channels, 1, bias=True)
  for s in range(c['stacks'] - 1):
    shapes |= _conv(f'inters_.{s}.0', first, first, 1) | _norm(f'inters_.{s}.1', first)
    shapes |= _conv(f'cnvs_.{s}.0', head, first, 1) | _norm(f'cnvs_.{s}.1', first)
    shapes |= _residual(f'inters.{s}', first, first)
  return shapes


def mmdetection_shapes(config: dict) -> Shapes:
  """The same of mmdetection's CornerNet, HourglassNet and CornerHead; a tests/golden/mmdetection.npz holds its own."""
  c = config
  first, head, pooled = c['dims'][0], c['head_width'], c['pool_width']
  shapes = _block('backbone.stem.0', 3, c['stem_width'], 7) | _basic('backbone.stem.1.0', c['stem_width'], first, 2)
  for s in range(c['stacks']):
    for key, shape in _hourglass(f'backbone.hourglass_modules.{s}', c['dims'], c['blocks']).items():
      shapes[key.replace('.skip.', '.downsample.')] = shape
    shapes |= _block(f'backbone.out_convs.{s}', first, head, 3)
    for kind in ('tl', 'br'):
      pool = f'bbox_head.{kind}_pool.{s}'
      shapes |= _block(f'{pool}.direction1_conv', head, pooled, 3) | _block(f'{pool}.direction2_conv', head, pooled, 3)
      shapes |= _block(f'{pool}.aftpool_conv', pooled, head, 3)
      shapes |= _block(f'{pool}.conv1', head, head, 1) | _block(f'{pool}.conv2', head, head, 3)
      for name, channels in {'heat': c['num_classes'], 'off': 2, 'emb': 1}.items():
        shapes |= _conv(f'bbox_head.{kind}_{name}.{s}.0.conv', head, first, 3, bias=True)
        shapes |= _conv(f'bbox_head.{kind}_{name}.{s}.1.conv', first, channels, 1, bias=True)
  for s in range(c['stacks'] - 1):
    shapes |= _block(f'backbone.conv1x1s.{s}', first, first, 1) | _block(f'backbone.remap_convs.{s}', head, first, 1)
    shapes |= _basic(f'backbone.inters.{s}', first, first)
  return shapes


def _basic(key: str, inputs: int, outputs: int, stride: int = 1) -> Shapes:
  shapes = _residual(key, inputs, outputs, stride)
  return {name.replace('.skip.', '.downsample.'): shape for name, shape in shapes.items()}
