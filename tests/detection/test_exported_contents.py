"""Exported files of strangers: what `export` never writes is refused before it is compiled, unpacked or allocated."""

import dataclasses
import io
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax import export as jax_export
from jax.extend import mlir
from jax.interpreters.mlir import ir, make_ir_context

import triplet_det
from tests.foreign_export import SETTINGS, WEIGHTS, boxes, changed, foreign_call, npz, write_file
from triplet_det import export
from triplet_det.detection import trained_network
from triplet_det.detection.settings import PUBLISHED_CORNERNET, PUBLISHED_MMDETECTION, Settings
from triplet_det.models import detector, layers

IMAGE = np.zeros((20, 20, 3), np.uint8)


def test_a_sound_file_is_run(tmp_path):
  (found,) = triplet_det.load(write_file(tmp_path / 'a.zip'))([IMAGE])
  assert len(found) == 0
  triplet_det.load(write_file(tmp_path / 'a.zip', compression=zipfile.ZIP_DEFLATED))  # somebody packed it again


def test_what_export_writes_is_accepted():
  """Networks and settings that have little in common, for every platform; nothing is compiled."""
  tiny = dict(detector.VARIANTS['tiny'], dims=(8, 8), blocks=(1, 1), stem_width=8, head_width=8, pool_width=8)
  cornernet = dict(tiny, center_branch=False, center_pooling=False, cascade_corner_pooling=False, dtype='bfloat16')
  sound = dict(stale_rows=False, canvas_multiple=32)
  several = dict(
    scales=(0.5, 1.0), merge_exponent=10.0, center_rule='first', nms_method='hard', mirror=False, top_k=200
  )
  for config, settings in (
    (tiny, Settings(canvas_multiple=32)),
    (cornernet, dataclasses.replace(PUBLISHED_CORNERNET, **sound)),
    (tiny, Settings(canvas_multiple=32, **several)),
    (dict(cornernet, pixels='imagenet'), dataclasses.replace(PUBLISHED_MMDETECTION, canvas_multiple=32)),
  ):
    module = detector.build(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 63, 63, 3), np.float32))
    weights = traverse_util.flatten_dict(jax.eval_shape(layers.fold_norms, shapes), sep='/')
    program = export.detection_program(trained_network.last_stack(module.clone(norm_folded=True)), settings)
    canvases = tuple((63, 63) for _ in settings.scales)
    serialised = export.lower(program, weights, canvases, settings, export.PLATFORMS, 2)  # refuses what it never wrote
    assert len(serialised) > 10_000


def in_a_branch(change):
  return lambda scores: jax.lax.cond(
    scores.sum() > 0, lambda x: jax.lax.while_loop(lambda y: y[0, 0] < 1, change, x), jnp.abs, scores
  )


FOREIGN = {
  'a custom call': (foreign_call('stranger'), r'has the operation stablehlo\.custom_call "stranger"'),
  'a callback in a loop in a branch': (
    in_a_branch(foreign_call('xla_ffi_python_cpu_callback')),
    r'stablehlo\.custom_call "xla_ffi_python_cpu_callback"',
  ),
  'a library of the backend': (
    lambda scores: scores + jnp.linalg.svd(scores, compute_uv=False),
    r'stablehlo\.custom_call "lapack_sgesdd_ffi"',
  ),
  'random bits': (lambda scores: jax.lax.rng_uniform(0.0, 1.0, (1, 5)), r'has the operation stablehlo\.rng:'),
  'another function': (jnp.sin, r'has the operation stablehlo\.sine:'),
  'a barrier': (jax.lax.optimization_barrier, r'has the operation stablehlo\.optimization_barrier:'),
  'a large array': (
    lambda scores: scores + jnp.ones((2**16, 2**15)).max(),
    r'has an array of tensor<65536x32768xf32>; possible are numbers, at most 10\d{8} bytes',
  ),
  'results of another size': (lambda scores: scores[:, :4], r"gives .*'scores': \('float32', \(1, 4\)\).* instead of"),
  'results of another type': (
    lambda scores: scores.astype(int),
    r"gives .*'scores': \('int32', \(1, 5\)\).* instead of",
  ),
}


@pytest.mark.parametrize('kind', FOREIGN)
def test_a_program_that_export_does_not_write_is_refused(tmp_path, kind):
  change, message = FOREIGN[kind]
  path = write_file(tmp_path / 'stranger.zip', changed(change))
  with pytest.raises(ValueError, match=r'stranger\.zip: the program for 31 x 31 .*' + message) as caught:
    triplet_det.load(path)([IMAGE])
  assert 'triplet_det.export never writes that, it is not run' in str(caught.value)


def module_of(functions):
  """A program as text, in the place of the one that `boxes` has; @main calls @f."""
  main = """
    func.func public @main(%a: tensor<8xf32>, %b: tensor<1x31x31x3xui8>, %c: tensor<1x2xf32>, %d: tensor<1x2xf32>,
        %e: tensor<1x2xf32>) -> (tensor<1x5x4xf32>, tensor<1x5xi32>, tensor<1x5xf32>, tensor<1x5xi1>) {
      %0 = func.call @f0(%c) : (tensor<1x2xf32>) -> tensor<1x2xf32>
      %1 = stablehlo.constant dense<0.0> : tensor<1x5x4xf32>
      %2 = stablehlo.constant dense<0> : tensor<1x5xi32>
      %3 = stablehlo.constant dense<0.0> : tensor<1x5xf32>
      %4 = stablehlo.constant dense<false> : tensor<1x5xi1>
      return %1, %2, %3, %4 : tensor<1x5x4xf32>, tensor<1x5xi32>, tensor<1x5xf32>, tensor<1x5xi1>
    }"""
  with make_ir_context():
    return mlir.serialize_portable_artifact(ir.Module.parse(f'module @a {{ {main} {functions} }}'), '1.9.0')


def function(name, body, attributes=''):
  kind = 'tensor<1x2xf32>'
  return f'func.func private @{name}(%a: {kind} {attributes}) -> {kind} {{ {body} return %r : {kind} }}'


def calls(*names):
  values = ['%a', *(f'%r{i}' for i in range(len(names) - 1)), '%r']
  kind = 'tensor<1x2xf32>'
  lines = [f'{to} = func.call @{name}({of}) : ({kind}) -> {kind}' for name, of, to in zip(names, values, values[1:])]
  return '\n'.join(lines)


TEXTS = {
  'a function that calls itself': (function('f0', calls('f1')) + function('f1', calls('f0')), 'calls itself, f'),
  'a function that doubles itself 40 times': (
    '\n'.join(function(f'f{i}', calls(f'f{i + 1}', f'f{i + 1}')) for i in range(40))
    + function('f40', '%r = stablehlo.add %a, %a : tensor<1x2xf32>'),
    'has more than 1000000 operations',
  ),
  'a hint for the backend': (
    function('f0', '%r = stablehlo.add %a, %a {mhlo.frontend_attributes = {}} : tensor<1x2xf32>'),
    r'has the operation stablehlo.add  mhlo\.frontend_attributes',
  ),
  'a hint for an argument': (
    function('f0', '%r = stablehlo.add %a, %a : tensor<1x2xf32>', '{mhlo.memory_kind = "pinned_host"}'),
    r'has the operation func.func  mhlo\.memory_kind',
  ),
  'a composite': (
    function(
      'f0', '%r = stablehlo.composite "a.stranger" %a {decomposition = @f1} : (tensor<1x2xf32>) -> tensor<1x2xf32>'
    )
    + function('f1', '%r = stablehlo.add %a, %a : tensor<1x2xf32>'),
    r'has the operation stablehlo\.composite "a.stranger"',
  ),
  'an unknown size': (
    function(
      'f0',
      """%s = stablehlo.convert %a : (tensor<1x2xf32>) -> tensor<?x2xf32>
      %r = stablehlo.convert %s : (tensor<?x2xf32>) -> tensor<1x2xf32>""",
    ),
    r'has an array of tensor<\?x2xf32>; possible are numbers',
  ),
}


@pytest.mark.parametrize('kind', TEXTS)
def test_a_program_that_no_function_of_python_gives_is_refused(tmp_path, kind):
  text, message = TEXTS[kind]
  sound = jax_export.deserialize(bytearray(zipfile.ZipFile(write_file(tmp_path / 'a.zip')).read('programs/31x31')))
  sound = dataclasses.replace(sound, mlir_module_serialized=module_of(text), module_kept_var_idx=tuple(range(5)))
  with pytest.raises(ValueError, match='the program for 31 x 31 .*' + message):
    triplet_det.load(write_file(tmp_path / 'a.zip', sound))([IMAGE])


def test_arguments_are_those_of_the_file(tmp_path):
  for match, changes in (
    (r'takes float32\[8\] for .*a.*, the file has float32\[9\]', dict(weights=dict(a=np.ones(9, np.float32)))),
    ('takes other arguments than detector.json and weights.npz have', dict(weights=dict(b=WEIGHTS['a']))),
    (r'takes uint8\[1, 31, 31, 3\] .* the file has uint8\[2, 31, 31, 3\]', dict(batch_size=2)),
  ):
    with pytest.raises(ValueError, match=match):
      triplet_det.load(write_file(tmp_path / 'a.zip', **changes))([IMAGE])


def test_a_small_file_does_not_unpack_to_a_large_one(tmp_path):
  zeros = npz(np.savez_compressed, a=np.zeros(2**25, np.float32))
  path = write_file(tmp_path / 'a.zip', weights=zeros)  # 128 MiB in 130 KB
  size = path.stat().st_size
  with pytest.raises(
    ValueError, match=rf'a\.zip is not a whole .*{size} bytes that unpack to 1342\d+, more than 67108864'
  ):
    triplet_det.load(path)
  path = write_file(tmp_path / 'a.zip', weights=dict(a=np.zeros(2**25, np.float32)), compression=zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match='unpack to 1342'):
    triplet_det.load(path)
  write_file(tmp_path / 'a.zip', compression=zipfile.ZIP_BZIP2)
  with pytest.raises(ValueError, match=r"'detector\.json' is encrypted, or packed as export never does"):
    triplet_det.load(path)


def test_weights_are_numbers_and_no_pickles(tmp_path):
  claims = io.BytesIO()
  np.lib.format.write_array_header_1_0(claims, dict(descr='<f4', fortran_order=False, shape=(2**50,)))
  with zipfile.ZipFile(large := io.BytesIO(), 'w') as archive:
    archive.writestr('a.npy', claims.getvalue())
  for match, weights in (
    ('Object arrays cannot be loaded', npz(a=np.array([{}], object))),
    (r'weights\.npz has a of <U3, weights are floating-point numbers', npz(a=np.array(['one']))),
    (r'a\.zip: weights\.npz in it is not as triplet_det\.export writes it: ', large.getvalue()),
    (r'a\.zip', b'\x93NUMPY'),
    (r'a\.zip: weights\.npz in it .* pickled', b'cos\nsystem\n(S"echo"\ntR.'),
  ):
    with pytest.raises(ValueError, match=match):
      triplet_det.load(write_file(tmp_path / 'a.zip', weights=weights))


SIDECARS = {
  "batch_size of detector.json is '8', it must be a whole number of 1 to 65536": dict(batch_size='8'),
  'batch_size of detector.json is True': dict(batch_size=True),
  'batch_size of detector.json is 0': dict(batch_size=0),
  'platforms of detector.json is 7, it must be a list': dict(platforms=7),
  "its format is '1'": dict(format='1'),
  r"not a whole file of triplet_det\.export \('categories'\)": dict(categories=None),
  "a category of detector.json is .*'id': '1'": dict(categories=[dict(id='1', name='cat')]),
  'a category of detector.json is 3': dict(categories=[3]),
  'the number of categories of detector.json is 10001, it must be at most 10000': dict(
    categories=[dict(id=i, name=str(i)) for i in range(10001)]
  ),
  r"file of detector.json is 'programs/\.\./x', it must be in programs/": dict(
    programs=[dict(file='programs/../x', canvases=[[31, 31]])]
  ),
  'canvases of detector.json is .*, it must be 1 times': dict(programs=[dict(file='programs/31x31', canvases=[])]),
  r'canvases of detector.json is \[\[31, 1e\+99\]\]': dict(
    programs=[dict(file='programs/31x31', canvases=[[31, 1e99]])]
  ),
  'the size of 1 images on .* is 3145536000, it must be at most 536870912 bytes': dict(
    programs=[dict(file='programs/31x31', canvases=[[32766, 32000]])]
  ),
  "unexpected keyword argument 'more'": dict(more=1),
  'checkpoint.step of detector.json is None': dict(checkpoint=dict(step=None)),
  'settings of detector.json is 1, it must be an object': dict(settings=1),
  'versions.jax of detector.json is 1, it must be a text': dict(versions=dict(jax=1, triplet_det='')),
}
WRONG_SETTINGS = dict(
  top_k='70',
  mirror=1,
  scales=[],
  center_scale=float('nan'),
  sigma=None,
  outside_margin='5',
  stale_rows=True,
  center_rule=1,
)


def test_fields_of_the_sidecar_have_their_types_and_sizes(tmp_path):
  settings = dataclasses.asdict(SETTINGS)
  wrong = [
    (rf'settings\.{name} of detector\.json is ', dict(settings=settings | {name: value}))
    for name, value in WRONG_SETTINGS.items()
  ]
  for match, changes in [
    *SIDECARS.items(),
    *wrong,
    ('unknown test settings more', dict(settings=settings | dict(more=1))),
  ]:
    with pytest.raises(ValueError, match=match) as caught:
      triplet_det.load(write_file(tmp_path / 'a.zip', **changes))
    assert 'a.zip' in str(caught.value) or 'unknown test settings' in str(caught.value)


def test_damaged_json_and_programs_name_the_file(tmp_path):
  path = tmp_path / 'a.zip'
  for text, match in (('{"format": 1', 'no JSON'), ('[' * 100_000, 'no JSON'), ('[]', 'not a whole file')):
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('detector.json', text)
    with pytest.raises(ValueError, match=rf'a\.zip.*{match}'):
      triplet_det.load(path)
  for program in (b'', b'no program', bytes(1000)):
    with pytest.raises(ValueError, match=r'a\.zip was exported with jax 0 and cannot be read by jax'):
      triplet_det.load(write_file(path, program))([IMAGE])


def test_results_fit_the_categories(tmp_path):
  for change in (dict(classes=1), dict(classes=-1), dict(boxes=np.inf), dict(boxes=np.nan)):
    ((name, value),) = change.items()

    def program(*arguments, name=name, value=value):
      found = boxes(*arguments)
      return found | {name: (found[name] + value).astype(found[name].dtype), 'valid': found['scores'] > 0}

    with pytest.raises(
      ValueError, match=r'a\.zip: its program gives boxes that are not finite, or classes beyond its 1 c'
    ):
      triplet_det.load(write_file(tmp_path / 'a.zip', program))([IMAGE])


def test_a_program_that_is_not_what_it_says_of_itself_names_the_file(tmp_path):
  sound = jax_export.deserialize(bytearray(zipfile.ZipFile(write_file(tmp_path / 'a.zip')).read('programs/31x31')))
  text = function('f0', '%r = stablehlo.add %a, %a : tensor<1x2xf32>')
  kept = dict(mlir_module_serialized=module_of(text), module_kept_var_idx=tuple(range(5)))
  for changes, match in (
    (kept | dict(module_kept_var_idx=(0, 1)), 'incorrect number of operands|verifier errors'),
    (kept | dict(platforms=('tpu',)), 'exported for platforms'),
    (kept | dict(nr_devices=2), 'exported for 2 devices'),
  ):
    with pytest.raises(ValueError, match=rf'a\.zip: the program for 31 x 31 cannot be run here: .*{match}'):
      triplet_det.load(write_file(tmp_path / 'a.zip', dataclasses.replace(sound, **changes)))([IMAGE])
