//! `ldmatrix`, `stmatrix` and `movmatrix`: 8x8 matrices of 16-bit elements between shared memory and fragments.
//!
//! A row is 8 elements, 16 bytes. Row `r` of matrix `i` lies where lane `8*i + r` points (so `.x1` uses the
//! addresses of lanes 0-7, `.x2` of 0-15, `.x4` of all), and matrix `i` fills register `i`:
//!
//! | | low half of lane `4*g + j` | high half |
//! | --- | --- | --- |
//! | plain | row `g`, column `2*j` | row `g`, column `2*j + 1` |
//! | `.trans` | row `2*j`, column `g` | row `2*j + 1`, column `g` |
//!
//! Source: PTX ISA 9.0, "Warp-level matrix load instruction: ldmatrix", "... store ...: stmatrix", "... transpose ...:
//! movmatrix". The shapes m8n16, m16n16 and m16n8 (8 bits and fewer) need sm_100 and are not implemented.

use super::Reg;

/// One row of an 8x8 matrix of 16-bit elements, as it lies in memory.
pub type Row = [u8; 16];

/// The modifiers of an `ldmatrix` or `stmatrix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixMove {
    /// Matrices, and registers a lane: 1, 2 or 4.
    pub num: usize,
    /// `.trans`.
    pub trans: bool,
}

impl MatrixMove {
    /// Reads an opcode such as `ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16`; compilers and authors put the
    /// qualifiers after `.aligned` in any order.
    ///
    /// # Errors
    /// A sentence that names the form if it is not implemented.
    pub fn parse(opcode: &str) -> Result<Self, String> {
        let unknown = || format!("`{opcode}` is not an ldmatrix or stmatrix form this simulator implements");
        let mut words = opcode.split('.');
        if !matches!(words.next(), Some("ldmatrix" | "stmatrix")) {
            return Err(unknown());
        }
        let (mut num, mut trans, mut shape, mut bits, mut sync) = (None, false, false, false, 0);
        for word in words {
            let fresh = match word {
                "sync" | "aligned" => {
                    sync += 1;
                    sync <= 2
                }
                "x1" => num.replace(1).is_none(),
                "x2" => num.replace(2).is_none(),
                "x4" => num.replace(4).is_none(),
                "trans" => !std::mem::replace(&mut trans, true),
                "m8n8" => !std::mem::replace(&mut shape, true),
                "b16" => !std::mem::replace(&mut bits, true),
                "shared" | "shared::cta" => true,
                _ => false,
            };
            if !fresh {
                return Err(unknown());
            }
        }
        match num {
            Some(num) if shape && bits && sync == 2 => Ok(Self { num, trans }),
            _ => Err(unknown()),
        }
    }
}

/// `ldmatrix`: the registers `d` of the matrices whose rows these are.
///
/// # Panics
/// If there are not 8 rows for each register.
pub fn ldmatrix(d: &mut [Reg], rows: &[Row], trans: bool) {
    assert_eq!(rows.len(), 8 * d.len(), "ldmatrix: 8 rows a register");
    for (d, rows) in d.iter_mut().zip(rows.chunks_exact(8)) {
        for (d, row) in d.chunks_exact_mut(4).zip(rows) {
            for (d, pair) in d.iter_mut().zip(row.chunks_exact(4)) {
                *d = u32::from_le_bytes([pair[0], pair[1], pair[2], pair[3]]);
            }
        }
        if trans {
            *d = movmatrix(d);
        }
    }
}

/// `stmatrix`: the rows that the registers `s` hold.
///
/// # Panics
/// If there are not 8 rows for each register.
pub fn stmatrix(rows: &mut [Row], s: &[&Reg], trans: bool) {
    assert_eq!(rows.len(), 8 * s.len(), "stmatrix: 8 rows a register");
    for (s, rows) in s.iter().zip(rows.chunks_exact_mut(8)) {
        let s = if trans { movmatrix(s) } else { **s };
        for (s, row) in s.chunks_exact(4).zip(rows) {
            for (s, pair) in s.iter().zip(row.chunks_exact_mut(4)) {
                pair.copy_from_slice(&s.to_le_bytes());
            }
        }
    }
}

/// `movmatrix.sync.aligned.m8n8.trans.b16`: the fragment of the transposed matrix.
pub fn movmatrix(a: &Reg) -> Reg {
    let element = |row: usize, column: usize| a[4 * row + column / 2] >> (16 * (column % 2)) & 0xffff;
    std::array::from_fn(|lane| {
        let (g, j) = (lane / 4, lane % 4);
        element(2 * j, g) | element(2 * j + 1, g) << 16
    })
}
