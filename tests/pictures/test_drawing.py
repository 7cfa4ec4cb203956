"""Drawings asserted by their pixels."""

import cv2
import numpy as np
import pytest

from triplet_det.pictures import drawing

BLACK, RED, GREEN = (0, 0, 0), (255, 0, 0), (0, 200, 0)


def blank(height=500, width=600, color=BLACK):
  return np.full((height, width, 3), color, np.uint8)


def covered(image, color):
  """x1 y1 x2 y2 around all pixels of exactly this colour."""
  rows, columns = np.nonzero((image == color).all(axis=-1))
  return columns.min(), rows.min(), columns.max(), rows.max()


def test_box_edge_tag_and_nothing_else():
  image = blank()
  drawn = drawing.draw_boxes(image, [[100, 200, 300, 400]], ['dog'], scores=[0.934], colors=RED)
  assert not image.any() and drawn.shape == image.shape
  for x, y in ((100, 300), (300, 300), (200, 200), (200, 400)):
    assert tuple(drawn[y, x]) == RED
  assert not drawn[210:390, 110:290].any()  # the inside stays free: the tag is above the box
  tag = drawn[185:196, 100:140]
  assert (tag == RED).all(axis=-1).mean() > 0.3 and (tag > 150).all(axis=-1).any()  # white letters on red
  _, top, right, bottom = covered(drawn, RED)
  assert 170 <= top < 190 and 300 <= right <= 303 and 400 <= bottom <= 403


@pytest.mark.parametrize('box', [(0, 0, 40, 30), (560, 0, 599, 30), (0, 480, 20, 499), (590, 490, 599, 499)])
def test_tags_stay_on_the_image(box):
  """The tag of a box at a corner is as large as that of a box in the middle."""
  plain = drawing.draw_boxes(blank(), [box], [''], colors=RED)
  tagged = drawing.draw_boxes(blank(), [box], ['traffic light'], colors=RED)
  middle = drawing.draw_boxes(blank(), [(300, 250, 310, 260)], ['traffic light'], colors=RED)
  x1, _, x2, _ = covered(middle[:247], RED)
  columns = np.flatnonzero((tagged != plain).any(axis=(0, 2)))
  assert columns[-1] - columns[0] >= 0.7 * (x2 - x1)
  assert (tagged > 150).all(axis=-1).sum() == pytest.approx((middle > 150).all(axis=-1).sum(), rel=0.3)


def test_long_label_fits_a_narrow_image():
  """Its last letter can be seen."""
  one, other = (
    drawing.draw_boxes(blank(500, 100), [[20, 200, 80, 300]], [f'a label far too long {end}'], colors=RED)
    for end in 'IW'
  )
  assert (one != other).any() and (one[:198] > 80).all(axis=-1).any()


def test_small_images_are_enlarged_by_a_whole_factor():
  drawn = drawing.draw_boxes(blank(100, 130), [[10, 50, 60, 90]], ['a'], colors=RED)
  assert drawn.shape == (400, 520, 3)
  assert tuple(drawn[280, 40]) == tuple(drawn[280, 240]) == tuple(drawn[360, 100]) == RED
  assert drawing.draw_boxes(blank(480, 130), [[10, 50, 60, 90]], ['a'], colors=RED).shape == (480, 130, 3)


def test_best_box_is_on_top():
  boxes = [[100, 100, 300, 300], [100, 100, 300, 300]]
  for scores, color in (([0.9, 0.2], RED), ([0.2, 0.9], GREEN)):
    assert tuple(drawing.draw_boxes(blank(), boxes, ['', ''], scores=scores, colors=[RED, GREEN])[300, 200]) == color
  assert tuple(drawing.draw_boxes(blank(), boxes, ['', ''], colors=[RED, GREEN])[300, 200]) == RED


def test_no_box_crosses_a_tag():
  """The tag of the red box lies where an edge of the better, green box runs."""
  boxes = [[100, 100, 300, 300], [120, 50, 400, 400]]
  drawn = drawing.draw_boxes(blank(), boxes, ['IIIIIIIIII', ''], scores=[0.2, 0.9], colors=[RED, GREEN])
  assert tuple(drawn[70, 120]) == GREEN and not (drawn[86:98, 110:130] == GREEN).all(axis=-1).any()


def test_boxes_beyond_the_image_are_cut():
  drawn = drawing.draw_boxes(blank(), [[-50, 100, 900, 1000]], [''], colors=RED)
  assert tuple(drawn[300, 0]) == tuple(drawn[300, 599]) == tuple(drawn[499, 300]) == RED


def test_no_boxes_is_the_image():
  image = blank(color=(10, 20, 30))
  np.testing.assert_array_equal(drawing.draw_boxes(image, np.zeros((0, 4)), []), image)


def test_a_view_can_be_drawn_on():
  bgr = blank(color=(30, 20, 10))
  drawn = drawing.draw_boxes(bgr[:, ::-1, ::-1], [[100, 200, 300, 400]], [''], colors=RED)
  assert tuple(drawn[0, 0]) == (10, 20, 30) and tuple(drawn[300, 100]) == RED


def test_ground_truth_is_blue_and_detections_are_red():
  drawn = drawing.draw_ground_truth_and_detections(
    blank(), [[50, 100, 150, 200]], ['cat'], [[300, 100, 400, 200]], ['cat'], [0.51]
  )
  assert tuple(drawn[150, 50]) == drawing.GROUND_TRUTH and tuple(drawn[150, 300]) == drawing.DETECTION
  assert drawing.GROUND_TRUTH[2] == 255 and drawing.DETECTION[0] > 200
  assert (drawn[203:215, 50:80] == drawing.GROUND_TRUTH).all(axis=-1).any()  # its tag is below
  assert not drawn[80:97, 50:80].any()
  assert (drawn[83:95, 300:330] == drawing.DETECTION).all(axis=-1).any() and not drawn[205:220, 300:330].any()


def test_class_colors_are_distinct_and_stable():
  colors = np.array([drawing.class_color(i) for i in range(20)], float)
  apart = np.linalg.norm(colors[:, None] - colors[None], axis=-1)
  assert apart[~np.eye(20, dtype=bool)].min() > 30
  assert drawing.class_color(0) == (242, 24, 24)


def test_shaded_boxes_let_the_image_through():
  image = blank(color=(100, 100, 100))
  drawn = drawing.shade_boxes(image, [[100, 200, 200, 300], [150, 200, 250, 300]], [RED, GREEN])
  assert covered(np.uint8(drawn != image), (1, 1, 1)) == (100, 200, 250, 300)
  assert tuple(drawn[250, 120]) == (162, 60, 60) and tuple(drawn[250, 220]) == (60, 140, 60)
  assert tuple(drawn[250, 180]) == (round(0.6 * 60 + 102), round(0.6 * 140), round(0.6 * 60))  # the first on top
  assert drawing.shade_boxes(blank(100, 120), [[10, 10, 20, 20]]).shape == (400, 480, 3)


def test_keypoints():
  drawn = drawing.draw_keypoints(blank(100, 130), [[20, 30], [100, 50]], colors=[RED, GREEN])
  assert tuple(drawn[120, 80]) == RED and tuple(drawn[200, 400]) == GREEN
  assert drawn[200, 408].min() > 150  # the rim
  assert drawn.any(axis=-1).sum() < 800


def test_the_area_of_a_keypoint_is_its_score():
  drawn = drawing.draw_keypoints(
    blank(800, 1000), [[100, 100], [500, 500], [800, 100]], scores=[0.9, 0.225, 0.0], colors=[RED, GREEN, (0, 0, 250)]
  )
  large, small, least = ((drawn == color).all(axis=-1).sum() for color in (RED, GREEN, (0, 0, 250)))
  assert large / small == pytest.approx(4, rel=0.2) and 4 < least < small / 2
  assert tuple(drawn[500, 500]) == GREEN


def test_heatmap_shows_the_image_where_it_is_cold():
  image = blank(480, 640, (90, 90, 90))
  heat = np.zeros((12, 16), np.float32)
  heat[3, 4] = 0.2
  drawn = drawing.draw_heatmap(image, heat)
  np.testing.assert_array_equal(drawn[240:], image[240:])
  red, green, blue = drawn[140, 180].astype(int)  # the middle of cell (3, 4); the map's own maximum is full
  assert red > 100 and red > green + 30 and red > blue + 30
  np.testing.assert_array_equal(drawing.draw_heatmap(image, heat / 4), drawn)  # however cold it is
  np.testing.assert_array_equal(drawing.draw_heatmap(image, np.zeros((12, 16))), image)


def test_contact_sheet():
  images = [blank(50, 100, RED), blank(200, 200, GREEN), blank(300, 100, (0, 0, 255))]
  sheet = drawing.contact_sheet(images, 2, cell_width=200)
  assert sheet.shape == (5 + 200 + 5 + 600 + 5, 5 + 200 + 5 + 200 + 5, 3)
  assert covered(sheet, RED) == (5, 5, 204, 104)
  assert covered(sheet, GREEN) == (210, 5, 409, 204)
  assert covered(sheet, (0, 0, 255)) == (5, 210, 204, 809)
  captioned = drawing.contact_sheet(images, 2, ['one', 'two', 'three'], cell_width=200)
  assert captioned.shape[0] > sheet.shape[0] and captioned.shape[1] == sheet.shape[1]
  assert (captioned[106:130, 5:60] < 120).all(axis=-1).any()


def test_save_png(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
  drawing.save_png(tmp_path / 'deep' / 'picture.png', image)
  np.testing.assert_array_equal(cv2.imread(str(tmp_path / 'deep' / 'picture.png'))[..., ::-1], image)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: drawing.draw_boxes(np.zeros((5, 5)), [], []), r'uint8 \[H, W, 3\] RGB, got float64 \[5, 5\]'),
    (lambda: drawing.draw_boxes([[1]], [], []), 'got list'),
    (lambda: drawing.draw_boxes(blank(), [[1, 2, 3, 4]], []), "'boxes': 1, 'labels': 0"),
    (lambda: drawing.draw_boxes(blank(), [[1, 2, 3, 4]], ['a'], scores=[1, 2]), "'scores': 2"),
    (lambda: drawing.draw_boxes(blank(), [[1, 2, 3, np.nan]], ['a']), 'must be finite'),
    (lambda: drawing.draw_boxes(blank(), [[1, 2, 3, 4]], ['a'], colors=[RED, RED]), '2 colors for 1'),
    (lambda: drawing.draw_heatmap(blank(), np.full((3, 3), -1.0)), 'sigmoid'),
    (lambda: drawing.draw_keypoints(blank(), [[np.inf, 0]]), 'must be finite'),
    (lambda: drawing.contact_sheet([], 2), '0 images'),
    (lambda: drawing.contact_sheet([blank()], 1, ['a', 'b']), '2 captions for 1 images'),
  ],
)
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
