//! No opcode, modifier or type without a test: the decoder takes none but those of `OPCODES`, and each of these is in a program
//! of the other tests.

use std::collections::BTreeMap;
use std::process::Command;

use ptxsim::{Module, OPCODES};

/// Opcodes whose shapes, layouts and copies have a file of tests of their own.
const ELSEWHERE: [(&str, &str); 9] = [
    ("cp", "kernels.rs, mutants.rs, hopper.rs, tensor_tma.rs"),
    ("fence", "kernels.rs, mutants.rs, hopper.rs"),
    ("ldmatrix", "tensor_ldmatrix.rs"),
    ("mbarrier", "kernels.rs, mutants.rs, hopper.rs"),
    ("mma", "tensor_mma.rs"),
    ("movmatrix", "tensor_ldmatrix.rs"),
    ("stmatrix", "tensor_ldmatrix.rs"),
    ("wgmma", "tensor_wgmma.rs, hopper.rs"),
    ("wmma", "tensor_wmma.rs"),
];

#[test]
fn every_opcode_modifier_and_type_has_a_test() {
    let list = tempfile::NamedTempFile::new().unwrap();
    let tests = Command::new(std::env::current_exe().unwrap())
        .args(["--skip", "coverage::"])
        .env(crate::harness::FORMS, list.path())
        .output()
        .unwrap();
    assert!(tests.status.success(), "{}", String::from_utf8_lossy(&tests.stdout));
    let forms = std::fs::read_to_string(list.path()).unwrap();
    let mut tested: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for form in forms.lines() {
        let mut parts = form.split('.');
        tested.entry(parts.next().unwrap()).or_default().extend(parts);
    }
    let missing: Vec<String> = OPCODES
        .iter()
        .filter(|(opcode, _)| !ELSEWHERE.iter().any(|(name, _)| name == opcode))
        .filter_map(|(opcode, parts)| match tested.get(opcode) {
            None => Some(opcode.to_string()),
            Some(used) => {
                let left: Vec<&str> = parts.split_whitespace().filter(|p| !used.contains(p)).collect();
                (!left.is_empty()).then(|| format!("{opcode}: {}", left.join(" ")))
            }
        })
        .collect();
    assert!(missing.is_empty(), "without a test:\n{}", missing.join("\n"));
}

/// What is not in `OPCODES` is refused by name, whatever else the instruction is like.
#[test]
fn other_modifiers_are_refused() {
    for (form, named) in [
        ("shl.f32", "`.f32`"),
        ("add.u32.v2", "`.v2`"),
        ("ld.global.b128", "`.b128`"),
        ("prefetch.global.L3", "`.L3`"),
        ("red.global.exch.b32", "`.exch`"),
        ("tex.2d.v4.f32.f32", "unknown instruction"),
    ] {
        let ptx = format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k() {{ .reg .b32 %a; {form} %a, %a, %a; ret; }}\n"
        );
        let forms = Module::parse(&ptx).unwrap().forms();
        let why = forms.iter().find(|f| f.text == form).unwrap().unsupported.clone().unwrap();
        assert!(why.contains(&format!("`{form}` is not supported")) && why.contains(named), "{why}");
    }
}
