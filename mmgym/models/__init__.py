"""The mathematics of each market: parameters, state and one exact step. Nothing here knows Gymnasium."""
