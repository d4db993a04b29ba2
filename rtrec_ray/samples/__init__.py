"""Samples: impressions joined with their clicks and with what serving knew, labelled, corrected, numbered."""
