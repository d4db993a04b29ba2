"""A world whose true click probabilities are known: people, goods, tastes that drift, and what shoppers do.

The system under test sees the records of the topics and nothing else; truths are for the simulation and the report.
"""
