"""What several kernel families are declared with: parameters, rules, inputs, oracles and costs.

A family of `kernelforge.families` imports from here and from no other family.
"""
