//! Operators: shape checks, costs, launches; one file an operator.
