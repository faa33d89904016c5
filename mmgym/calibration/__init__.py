"""From recorded markets to model parameters, one module per market.

Nothing is imported here; import the market that is wanted: ``from mmgym.calibration.glft import calibrate``.
"""
