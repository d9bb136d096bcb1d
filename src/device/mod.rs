//! Devices: where a plan runs. The CPU runs `reference/`.

pub mod cpu;
