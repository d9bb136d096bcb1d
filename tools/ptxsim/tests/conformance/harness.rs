//! Runs one instruction on many operands, and rounds exactly.

use std::io::Write;

use ptxsim::{LaunchConfig, LoadedModule, Memory, Module, Options, launch};

/// The variable that names a file to which the forms of every program are added.
pub const FORMS: &str = "PTXSIM_FORMS";

/// The module of a test's program.
pub fn module(ptx: &str) -> Module {
    let module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}\n{ptx}"));
    if let Some(file) = std::env::var_os(FORMS) {
        let mut file = std::fs::OpenOptions::new().append(true).open(file).unwrap();
        let forms: String = module.forms().iter().map(|f| format!("{}\n", f.text)).collect();
        file.write_all(forms.as_bytes()).unwrap();
    }
    module
}

/// What a result should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Want {
    /// These bits.
    Bits(u64),
    /// Any NaN of f64, whose payload the ISA leaves open.
    NanF64,
    /// An f32 no further from the value than so much, and of its sign.
    Near(f64, f64),
}

/// Runs `instruction` once for each row of operands, one a thread, and compares.
///
/// `types` are the sizes of `$d, $a, $b, $c, $e`: `b16 b32 b64 pred`; several instructions may be given.
pub fn check(instruction: &str, types: &[&str], rows: &[Vec<u64>], want: impl Fn(&[u64]) -> Want) {
    let got = run(instruction, types, rows);
    for (row, got) in rows.iter().zip(got) {
        let want = want(row);
        let ok = match want {
            Want::Bits(b) => got == b,
            Want::NanF64 => f64::from_bits(got).is_nan(),
            Want::Near(v, error) => {
                let g = f64::from(f32::from_bits(got as u32));
                g == v || (g - v).abs() <= error && g.is_sign_negative() == v.is_sign_negative()
            }
        };
        assert!(ok, "{instruction} on {row:x?} gives {got:x}, should be {want:x?}");
    }
}

/// The results of `instruction`, zero-extended.
pub fn run(instruction: &str, types: &[&str], rows: &[Vec<u64>]) -> Vec<u64> {
    let names = ["%d", "%a", "%b", "%c", "%e"];
    let mut body = String::new();
    for (i, (name, ty)) in names.iter().zip(types).enumerate() {
        let at = (i.max(1) - 1) * 8;
        if *ty == "pred" {
            body += &format!(".reg .pred {name};\n");
            if i > 0 {
                body += &format!("ld.global.u32 %t, [%in+{at}];\nsetp.ne.u32 {name}, %t, 0;\n");
            }
        } else {
            body += &format!(".reg .{ty} {name};\n");
            // $d may be read as well: it begins as $a.
            body += &format!("ld.global.{ty} {name}, [%in+{at}];\n");
        }
    }
    body += &instruction.replace('$', "%");
    body += "\n";
    body += &match types[0] {
        "pred" => "selp.u64 %r, 1, 0, %d;\n".to_owned(),
        "b64" => "mov.b64 %r, %d;\n".to_owned(),
        ty => format!("cvt.u64.u{} %r, %d;\n", &ty[1..]),
    };
    let ptx = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u64 in, .param .u32 n) {{\n\
         .reg .u32 %t, %n, %i; .reg .u64 %in, %out, %r, %w; .reg .pred %end;\n\
         ld.param.u64 %out, [out];\nld.param.u64 %in, [in];\nld.param.u32 %n, [n];\n\
         mov.u32 %t, %tid.x;\nmov.u32 %i, %ctaid.x;\nmad.lo.u32 %i, %i, 64, %t;\n\
         setp.ge.u32 %end, %i, %n;\n@%end ret;\n\
         mad.wide.u32 %in, %i, 32, %in;\nmad.wide.u32 %out, %i, 8, %out;\n\
         {body}st.global.u64 [%out], %r;\nret;\n}}\n"
    );
    let memory = Memory::new(1 << 30);
    let module = LoadedModule::load(module(&ptx).into(), &memory).unwrap();
    let words: Vec<u64> = rows.iter().flat_map(|r| (0..4).map(|i| r.get(i).copied().unwrap_or(0))).collect();
    let (out, input) = (
        memory.alloc(rows.len() as u64 * 8, 256).unwrap(),
        memory.alloc(rows.len() as u64 * 32, 256).unwrap(),
    );
    memory.write(input, bytemuck::cast_slice(&words)).unwrap();
    let config =
        LaunchConfig::new(rows.len().div_ceil(64) as u32, 64).arg(out).arg(input).arg(rows.len() as u32);
    let options = Options { threads: 1, gpu: ptxsim::GpuSpec::named("h100").unwrap(), ..Options::default() };
    let report =
        launch(&memory, &module, "k", &config, &options).unwrap_or_else(|e| panic!("{instruction}: {e}"));
    assert!(report.is_clean(), "{instruction}: {:?} {:?}", report.fault, report.reports);
    let mut got = vec![0u64; rows.len()];
    memory.read(out, bytemuck::cast_slice_mut(&mut got)).unwrap();
    got
}

/// Every combination of `n` of these values.
pub fn all<const N: usize>(values: [&[u64]; N]) -> Vec<Vec<u64>> {
    values.iter().fold(vec![vec![]], |rows, values| {
        rows.iter()
            .flat_map(|r| values.iter().map(move |v| r.iter().copied().chain([*v]).collect()))
            .collect()
    })
}

/// Integers where something happens, as `bits` wide.
pub fn integers(bits: u32) -> Vec<u64> {
    let top = 1u64 << (bits - 1);
    let ones = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let all = [
        0,
        1,
        2,
        3,
        7,
        0x55aa_1234_89ab_cdef & ones,
        0xf0e1_d2c3_b4a5_9687 & ones,
        top - 1,
        top,
        top + 1,
        ones - 1,
        ones,
    ];
    all.to_vec()
}

/// f32 values where something happens, as bits.
pub fn f32s() -> Vec<u64> {
    let tiny = f32::from_bits(1);
    let values = [
        0.0,
        1.0,
        1.5,
        3.0,
        0.1,
        2.5,
        1e-20,
        1e20,
        16777217.0,
        0.99999994,
        f32::MAX,
        f32::MIN_POSITIVE,
        tiny,
        tiny * 4_000_001.0,
        f32::INFINITY,
    ];
    let mut bits: Vec<u64> =
        values.iter().flat_map(|v: &f32| [v.to_bits().into(), (-v).to_bits().into()]).collect();
    bits.extend([0x7fc0_0000, 0xffc1_2345, 0x7f80_0001]);
    bits
}

/// f64 values where something happens, as bits.
pub fn f64s() -> Vec<u64> {
    let tiny = f64::from_bits(1);
    let values = [
        0.0,
        1.0,
        1.5,
        0.1,
        3.0,
        1e-200,
        1e200,
        1e-310,
        2.5,
        0.5,
        4294967296.5,
        9.3e18,
        f64::MAX,
        f64::MIN_POSITIVE,
        tiny,
        f64::INFINITY,
    ];
    let mut bits: Vec<u64> = values.iter().flat_map(|v: &f64| [v.to_bits(), (-v).to_bits()]).collect();
    bits.push(f64::NAN.to_bits());
    bits
}

/// How a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To nearest, ties to even.
    Rn,
    /// To nearest, ties away from zero.
    Rna,
    /// Towards zero, down, up.
    Rz,
    Rm,
    Rp,
}
pub const MODES: [(&str, Mode); 4] = [("rn", Mode::Rn), ("rz", Mode::Rz), ("rm", Mode::Rm), ("rp", Mode::Rp)];

/// A binary format: bits of the significand with the hidden one, least exponent, largest value.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub p: i32,
    pub emin: i32,
    pub max: f64,
}
pub const F32: Format = Format { p: 24, emin: -126, max: f32::MAX as f64 };
pub const F16: Format = Format { p: 11, emin: -14, max: 65504.0 };
pub const BF16: Format = Format { p: 8, emin: -126, max: 3.3895313892515355e38 };
pub const TF32: Format = Format { p: 11, emin: -126, max: 3.4011621342146535e38 };
pub const E4M3: Format = Format { p: 4, emin: -6, max: 448.0 };
pub const E5M2: Format = Format { p: 3, emin: -14, max: 57344.0 };

/// `hi + lo`, exactly, rounded to a format; `|lo|` is less than half a unit of `hi`.
pub fn round(hi: f64, lo: f64, f: Format, mode: Mode) -> f64 {
    if hi == 0.0 || !hi.is_finite() {
        return hi;
    }
    let (s, m, l) = (hi.signum(), hi.abs(), lo * hi.signum());
    let mut e = exponent(m);
    if m == 2f64.powi(e) && l < 0.0 {
        e -= 1;
    }
    let q = 2f64.powi(e.max(f.emin) - f.p + 1);
    let (t, l) = (m / q, l / q);
    let mut n = t.floor();
    let mut frac = t - n;
    if frac == 0.0 && l < 0.0 {
        n -= 1.0;
        frac = 0.99;
    }
    let above = frac > 0.5 || frac == 0.5 && l > 0.0;
    let half = frac == 0.5 && l == 0.0;
    let inexact = frac > 0.0 || l > 0.0;
    let up = match mode {
        Mode::Rn => above || half && n % 2.0 == 1.0,
        Mode::Rna => above || half,
        Mode::Rz => false,
        Mode::Rm => inexact && s < 0.0,
        Mode::Rp => inexact && s > 0.0,
    };
    let v = (n + f64::from(u8::from(up))) * q;
    if v <= f.max {
        return s * v;
    }
    let away = match mode {
        Mode::Rn | Mode::Rna => true,
        Mode::Rz => false,
        Mode::Rm => s < 0.0,
        Mode::Rp => s > 0.0,
    };
    s * if away { f64::INFINITY } else { f.max }
}

fn exponent(m: f64) -> i32 {
    let biased = (m.to_bits() >> 52) as i32;
    if biased > 0 { biased - 1023 } else { exponent(m * 2f64.powi(200)) - 200 }
}

/// `a + b` as a rounded sum and its exact error.
pub fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let bb = s - a;
    (s, if s.is_finite() { (a - (s - bb)) + (b - bb) } else { 0.0 })
}

/// Bits of a value that the 16-bit format represents.
pub fn f16_bits(v: f64) -> u64 {
    small_bits(v, F16, 5, 10, 0x7fff)
}
pub fn bf16_bits(v: f64) -> u64 {
    small_bits(v, BF16, 8, 7, 0x7fff)
}
/// Bits of a value of the format with so many exponent and fraction bits; `nan` is the one NaN.
pub fn small_bits(v: f64, f: Format, exponents: u32, fraction: u32, nan: u64) -> u64 {
    if v.is_nan() {
        return nan;
    }
    let sign = u64::from(v.is_sign_negative()) << (exponents + fraction);
    if v.is_infinite() {
        return sign | ((1 << exponents) - 1) << fraction;
    }
    let m = v.abs();
    if m < 2f64.powi(f.emin) {
        return sign | (m / 2f64.powi(f.emin - fraction as i32)) as u64;
    }
    let e = exponent(m);
    let field = ((e - f.emin + 1) as u64) << fraction;
    sign | field | ((m / 2f64.powi(e) - 1.0) * 2f64.powi(fraction as i32)) as u64
}
/// The value of a 16-bit float.
pub fn from_f16(bits: u64) -> f64 {
    half::f16::from_bits(bits as u16).to_f64()
}
pub fn from_bf16(bits: u64) -> f64 {
    half::bf16::from_bits(bits as u16).to_f64()
}
pub fn from_f32(bits: u64) -> f64 {
    f64::from(f32::from_bits(bits as u32))
}
/// Bits of an f32 result; every NaN is the canonical one.
pub fn f32_bits(v: f64) -> Want {
    Want::Bits(if v.is_nan() { 0x7fff_ffff } else { (v as f32).to_bits().into() })
}
