"""Datasets of the toolboxes that check what they load. The toolbox decides which module can be imported."""
