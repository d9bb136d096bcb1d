//! Opcode forms against arithmetic done another way: exact integers (i128), and floating point as an exact sum of two f64
//! that is rounded once, to the format and in the mode that the PTX ISA names.

mod coverage;
mod float;
mod harness;
mod integer;
mod memory;
mod rare;
mod warp;
