//! Devices: where a plan runs.
