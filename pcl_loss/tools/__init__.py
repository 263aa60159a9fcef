"""The verbs of `pcl-loss`, one module or folder each. The loss does without all of them."""
