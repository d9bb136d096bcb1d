//! PTX: any text gives a module whose every kernel and opcode form can be described, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ptxsim::Module;

fuzz_target!(|text: &str| {
    if let Ok(module) = Module::parse(text) {
        for kernel in module.kernels() {
            assert_eq!(module.kernel(&kernel.name).map(|k| k.param_bytes), Some(kernel.param_bytes));
            let last = kernel.params.last().map_or(0, |p| p.offset + p.bytes);
            assert!(last <= kernel.param_bytes);
        }
        assert!(module.forms().iter().all(|f| f.count > 0));
        module.symbols();
    }
});
