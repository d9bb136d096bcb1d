//! What several test files share.
#![allow(dead_code)]

pub mod chat;
pub mod demo;
pub mod golden;
pub mod gpu;
pub mod hollow;
pub mod pieces;
