"""Exported files with other contents than `export` writes."""

import dataclasses
import io
import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from triplet_det import export
from triplet_det.detection.settings import Settings

SETTINGS = Settings(canvas_multiple=32, max_detections=5)
WEIGHTS = {'a': np.ones(8, np.float32)}


def boxes(weights, canvases, border, size, scale):
  """Stands in for a network; the arguments and results are those of `export.detection_program`."""
  value = weights['a'].sum() + border[0].sum()
  found = jnp.zeros((canvases[0].shape[0], 5))
  return dict(boxes=found[..., None] + jnp.zeros(4), scores=found + value, classes=found.astype(int), valid=found > 1)


def write_file(path, program=boxes, weights=WEIGHTS, canvas=(31, 31), compression=zipfile.ZIP_STORED, **changes):
  """A file as `export` writes it but for its program; None of `changes` removes a field of the sidecar."""
  shaped = jax.ShapeDtypeStruct
  pairs = [shaped((1, 2), np.float32)]
  given = [{name: shaped(a.shape, a.dtype) for name, a in WEIGHTS.items()}, [shaped((1, *canvas, 3), np.uint8)]]
  if callable(program):
    every = [jax_export.DisabledSafetyCheck.custom_call(name) for name in ('xla_ffi_python_cpu_callback', 'stranger')]
    lowered = jax_export.export(jax.jit(program), platforms=['cpu'], disabled_checks=every)
    program = lowered(*given, pairs, pairs, pairs)
  content = dict(
    format=1,
    programs=[dict(file='programs/31x31', canvases=[canvas])],
    platforms=['cpu', 'cuda', 'tpu'],
    batch_size=1,
    arguments=export.ARGUMENTS,
    results=export.RESULTS,
    preprocessing=export.PREPROCESSING,
    settings=dataclasses.asdict(SETTINGS),
    categories=[dict(id=1, name='cat')],
    checkpoint=dict(path='', step=3, metrics={}),
    versions=dict(triplet_det='1', jax='0'),
  )
  content = {name: value for name, value in (content | changes).items() if value is not None}
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('detector.json', json.dumps(content))
    archive.writestr('programs/31x31', bytes(program.serialize()) if hasattr(program, 'serialize') else program)
    archive.writestr('weights.npz', weights if isinstance(weights, bytes) else npz(**weights))
  return path


def npz(save=np.savez, **weights):
  content = io.BytesIO()
  save(content, **weights)
  return content.getvalue()


def changed(change):
  """The program whose scores [1, 5] are something else."""

  def program(*arguments):
    found = boxes(*arguments)
    return found | dict(scores=change(found['scores']))

  return program


def foreign_call(name):
  return lambda scores: jax.ffi.ffi_call(name, jax.ShapeDtypeStruct((1, 5), jnp.float32))(scores)
