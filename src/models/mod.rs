//! The models: functions that append nodes to a graph, one line a step.
