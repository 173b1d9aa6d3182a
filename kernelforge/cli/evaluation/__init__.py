"""What `kernelforge eval` measures: the ROSA demonstrations, and how well a text is predicted."""
