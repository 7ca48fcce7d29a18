"""Semi-supervised mining of an unlabelled pool (seed 2.5): learners label what they agree on."""
