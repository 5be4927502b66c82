"""Drift detectors: one a file, all with the interface of `Detector`."""
