"""Table 4: what central region exploration, center pooling and cascade corner pooling add to CornerNet511-52.

  python -m triplet_det.main --config configs/ablation.py:row=5 --workdir runs/row_5          # COCO, as in the paper
  python -m triplet_det.main --config configs/ablation.py:row=5,small=1 --workdir runs/small  # the embedded data set

Everything but the switches is equal in all rows. AP on COCO validation in the paper: 37.6, 38.3, 39.9, 40.8, 41.3.
`scripts/paper/tables.py table4 --runs runs/tables` trains the rows and prints them beside the paper's.
"""

from ml_collections import ConfigDict

from triplet_det.configs import shapes, triplet

# center_branch (CRE), center_pooling (CTP), cascade_corner_pooling (CCP). The paper's second row is ticked under CTP,
# but its text says that row is cascade corner pooling; center pooling has no place without a center branch.
ROWS = {
  '1': (False, False, False),
  '2': (False, False, True),
  '3': (True, False, False),
  '4': (True, True, False),
  '5': (True, True, True),
}


def get_config(variant: str = 'row=5') -> ConfigDict:
  chosen = triplet.parse_variant(variant, row=tuple(reversed(ROWS)), small=triplet.SMALL)
  config = shapes.for_comparisons() if chosen['small'] == '1' else triplet.get_config('hg=52')
  if chosen['small'] == '1':
    config.total_steps = 1_500  # under 8 minutes on 2 CPU cores
    config.eval_every = 1_500
  for switch, value in zip(('center_branch', 'center_pooling', 'cascade_corner_pooling'), ROWS[chosen['row']]):
    config.model[switch] = value
  return config
