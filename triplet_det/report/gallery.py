"""The best and the worst images: plain pictures with their boxes as SVG on top, which page.js shows and hides."""

import base64
import html
import math
import statistics

import cv2
import numpy as np
from etils import epath

from triplet_det.report.run_folder import Box, Picture

MAX_SIDE = 640  # pixels of an embedded image
MAX_BYTES = 150_000  # of an embedded image: 16 of them stay below 3.3 MB as base64
KINDS = {'truth': 'ground truth', 'detections': 'detections', 'rejected': 'rejected pairs'}
COUNTED = {'truth': 'objects', 'detections': 'detections', 'rejected': 'rejected'}
TEXT_HEIGHT = 0.035  # of the tile's width; as in page.css
_UP, _DOWN = 'up', 'down'  # a tag lies above or below the edge of the box it is attached to
# Where the tag of a box is tried first: at its upper (0) or lower (1) edge; different places for the three kinds.
_PLACES = {
  'truth': ((1, _DOWN), (1, _UP), (0, _UP), (0, _DOWN)),
  'detections': ((0, _UP), (0, _DOWN), (1, _DOWN), (1, _UP)),
  'rejected': ((0, _DOWN), (0, _UP), (1, _UP), (1, _DOWN)),
}


def show_pictures(pictures: list[Picture], threshold: float) -> str:
  """The toggles, and the pictures below their titles.

  Args:
    pictures: at least one.
    threshold: boxes with scores up to it are hidden until the slider is moved.
  """
  some = {kind: any(getattr(picture, kind) for picture in pictures) for kind in KINDS}
  toggles = ''.join(_toggle(kind, label, kind != 'rejected', some[kind]) for kind, label in KINDS.items())
  lacking = ' '.join(f'These images have no {label}.' for kind, label in KINDS.items() if not some[kind])
  scores = [box.score for picture in pictures for box in picture.detections + picture.rejected]
  lowest = min([threshold, *(math.floor(100 * score) / 100 for score in scores)])  # below it the slider shows no more
  ratio = min(max(statistics.median(picture.width / picture.height for picture in pictures), 0.8), 1.6)
  parts = [
    f'<form class="toggles" aria-label="What the pictures show">{toggles}{_toggle("labels", "labels", True, True)}'
    f'<label class="slider">score above <input type="range" name="threshold" min="{lowest:.2f}" max="1" step="0.01" '
    f'value="{threshold:.2f}"> <output>{threshold:.2f}</output></label></form>'
  ]
  if lacking:
    parts.append(f'<p class="note">{lacking}</p>')
  for title in dict.fromkeys(picture.title for picture in pictures):
    figures = ''.join(_figure(picture, threshold, ratio) for picture in pictures if picture.title == title)
    parts.append(f'<h3>{html.escape(title.capitalize())} images</h3><div class="pictures">{figures}</div>')
  return f'<div class="gallery no-rejected" style="--ratio:{ratio:.3f}">{"".join(parts)}</div>'


def data_uri(path: epath.Path) -> str | None:
  """The image as a JPEG inside a URI, at most MAX_SIDE pixels a side; None if there is no readable image."""
  content = np.frombuffer(path.read_bytes(), np.uint8) if path.exists() else np.empty(0, np.uint8)
  image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
  if image is None:
    return None
  factor = MAX_SIDE / max(image.shape[:2])
  if factor < 1:
    size = [max(1, round(factor * side)) for side in image.shape[1::-1]]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  for quality in (88, 75, 60, 40):
    encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    if len(encoded) <= MAX_BYTES:
      break
  return 'data:image/jpeg;base64,' + base64.b64encode(encoded).decode()


def _toggle(kind: str, label: str, checked: bool, enabled: bool) -> str:
  state = (' checked' if checked else '') + ('' if enabled else ' disabled')
  key = f'<svg class="key" viewBox="0 0 26 8" aria-hidden="true"><path class="box {kind}" d="M1 4H25"/></svg>'
  return (
    f'<label class="toggle"><input type="checkbox" name="{kind}"{state}>'
    f'{key if kind in KINDS else ""}<span>{label}</span></label>'
  )


def _figure(picture: Picture, threshold: float, ratio: float) -> str:
  """One picture in a tile that is `ratio` times as wide as high, and its facts."""
  name, uri = html.escape(picture.file_name), data_uri(picture.image)
  counts = {kind: sum(_is_over(box, threshold) for box in getattr(picture, kind)) for kind in KINDS}
  f1 = '' if picture.f1 is None else f'<span>F1 <data value="{picture.f1!r}">{picture.f1:.2f}</data></span>'
  facts = ''.join(
    f'<span><span class="count" data-kind="{kind}">{counts[kind]}</span> {label}</span>'
    for kind, label in COUNTED.items()
  )
  caption = f'<strong title="{name}">{name}</strong><span class="facts">{f1}{facts}</span>'
  if uri is None:
    missing = f'The image {html.escape(picture.image.name)} is missing or unreadable.'
    return f'<figure class="picture"><p class="missing">{missing}</p><figcaption>{caption}</figcaption></figure>'
  extent = max(picture.width, picture.height * ratio)  # pixels of the image along the tile's width
  described = ', '.join(f'{counts[kind]} {label}' for kind, label in COUNTED.items())
  return (
    f'<figure class="picture"><svg viewBox="0 0 {picture.width} {picture.height}" style="--extent:{extent:.1f}" '
    f'role="img" aria-label="{name}: {described}"><image href="{uri}" width="{picture.width}" '
    f'height="{picture.height}" preserveAspectRatio="none"/>{_overlay(picture, threshold, TEXT_HEIGHT * extent)}</svg>'
    f'<figcaption>{caption}<button type="button" class="enlarge" aria-pressed="false" '
    f'aria-label="Enlarge {name}"><span aria-hidden="true">⤢</span></button></figcaption></figure>'
  )


def _overlay(picture: Picture, threshold: float, text_height: float) -> str:
  """All boxes, ground truth on top because its dashes leave a detection below visible, and over all boxes the tags."""
  shapes, tags = {}, {}
  taken = np.empty((0, 4))  # what the tags so far cover
  for kind in ('truth', 'detections', 'rejected'):  # in this order the tags choose their places, best scores first
    shapes[kind], tags[kind] = [], []
    for box in sorted(getattr(picture, kind), key=lambda box: -(box.score or 0.0)):
      x1, x2 = (min(max(x, 0.0), picture.width) for x in box.corners[0::2])
      y1, y2 = (min(max(y, 0.0), picture.height) for y in box.corners[1::2])
      text = html.escape(box.name) + ('' if box.score is None else f' {box.score:.2f}')
      score = '' if box.score is None else f' data-score="{box.score:.4g}"'
      hidden = '' if _is_over(box, threshold) else ' hidden=""'
      shapes[kind].append(
        f'<rect class="box {kind}" x="{x1:.1f}" y="{y1:.1f}" width="{max(x2 - x1, 0.0):.1f}" '
        f'height="{max(y2 - y1, 0.0):.1f}"{score}{hidden}><title>{text}</title></rect>'
      )
      size = np.array([0.66 * len(html.unescape(text)), 1.2]) * text_height
      edge, side, at_right, covered = _best_place(kind, (x1, y1, x2, y2), size, (picture.width, picture.height), taken)
      taken = np.concatenate([taken, [covered]])
      anchor = ' text-anchor="end"' if at_right else ''
      at = f'x="{x2 if at_right else x1:.1f}" y="{(y1, y2)[edge]:.1f}"'
      tags[kind].append(f'<text class="{side}" {at}{anchor}{score}{hidden}>{text}</text>')
  upwards = ('rejected', 'detections', 'truth')
  return ''.join(f'<g class="{kind}">{"".join(reversed(shapes[kind]))}</g>' for kind in upwards) + ''.join(
    f'<g class="{kind} tags">{"".join(reversed(tags[kind]))}</g>' for kind in upwards
  )


def _best_place(
  kind: str, corners: tuple, size: np.ndarray, image_size: tuple[int, int], taken: np.ndarray
) -> tuple[int, str, bool, np.ndarray]:
  """Where a tag of `size` hides least of other tags: edge, side, at the right end or not; and what it covers [4]."""
  x1, y1, x2, y2 = corners
  found = []
  for edge, side in _PLACES[kind]:
    for at_right in (False, True):
      start = np.array([x2 - size[0] if at_right else x1, (y1, y2)[edge] - (size[1] if side == _UP else 0.0)])
      covered = np.concatenate([start, start + size])
      outside = size.prod() - _common_area(covered, np.array([[0, 0, *image_size]])).sum()
      found.append((4 * outside + _common_area(covered, taken).sum(), edge, side, at_right, covered))
  return min(found, key=lambda place: place[0])[1:]


def _is_over(box: Box, threshold: float) -> bool:
  return box.score is None or box.score > threshold


def _common_area(one: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Of a rectangle [4] with others [n, 4]: [n]."""
  sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
  return np.maximum(sides, 0.0).prod(axis=1)
