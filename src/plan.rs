//! Activations by lifetime in one arena.
