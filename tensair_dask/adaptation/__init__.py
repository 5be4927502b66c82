"""Modes: when a model trains, and what happens when its stream drifts."""
