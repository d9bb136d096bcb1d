//! `ldmatrix` and `stmatrix`: every element of distinct values in its place.

// Loops run over lanes, as the ISA's formulas do.
#![allow(clippy::needless_range_loop)]

use ptxsim::tensor::Reg;
use ptxsim::tensor::ldmatrix::{MatrixMove, Row, ldmatrix, movmatrix, stmatrix};

/// Element (row, column) of matrix i is 100*i + 8*row + column.
fn rows(matrices: usize) -> Vec<Row> {
    (0..8 * matrices)
        .map(|at| {
            let mut row = [0; 16];
            for column in 0..8 {
                let x = (100 * (at / 8) + 8 * (at % 8) + column) as u16;
                row[2 * column..2 * column + 2].copy_from_slice(&x.to_le_bytes());
            }
            row
        })
        .collect()
}

#[test]
fn every_element_lands_in_its_lane() {
    for matrices in [1, 2, 4] {
        let mut plain = vec![[0; 32]; matrices];
        let mut trans = plain.clone();
        ldmatrix(&mut plain, &rows(matrices), false);
        ldmatrix(&mut trans, &rows(matrices), true);
        for (i, (plain, trans)) in plain.iter().zip(&trans).enumerate() {
            for lane in 0..32 {
                let at = |row: usize, column: usize| (100 * i + 8 * row + column) as u32;
                // PTX ISA: each group of four threads holds a row; with .trans, a column.
                let (group, pair) = (lane / 4, 2 * (lane % 4));
                assert_eq!(plain[lane], at(group, pair) | at(group, pair + 1) << 16);
                assert_eq!(trans[lane], at(pair, group) | at(pair + 1, group) << 16);
            }
        }
    }
}

#[test]
fn stores_undo_loads() {
    for trans in [false, true] {
        let source = rows(4);
        let mut regs = vec![[0; 32]; 4];
        ldmatrix(&mut regs, &source, trans);
        let mut back = vec![[0; 16]; 32];
        stmatrix(&mut back, &regs.iter().collect::<Vec<&Reg>>(), trans);
        assert_eq!(back, source);
        assert_eq!(movmatrix(&movmatrix(&regs[0])), regs[0]);
    }
}

#[test]
fn qualifiers_come_in_any_order() {
    let of = |num, trans| Ok(MatrixMove { num, trans });
    assert_eq!(MatrixMove::parse("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"), of(4, true));
    assert_eq!(MatrixMove::parse("ldmatrix.sync.aligned.x4.trans.m8n8.shared.b16"), of(4, true));
    assert_eq!(MatrixMove::parse("stmatrix.sync.aligned.x2.m8n8.shared.b16"), of(2, false));
    assert_eq!(MatrixMove::parse("stmatrix.sync.aligned.m8n8.x1.shared::cta.b16"), of(1, false));
    assert_eq!(MatrixMove::parse("ldmatrix.sync.aligned.m8n8.x1.b16"), of(1, false));
    for bad in [
        "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8",
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16",
        "ldmatrix.sync.aligned.m8n8.x2.x4.shared.b16",
        "ldmatrix.sync.aligned.m8n8.shared.b16",
        "ldmatrix.m8n8.x4.shared.b16",
        "ldmatrix",
        "",
    ] {
        assert!(MatrixMove::parse(bad).unwrap_err().contains(bad));
    }
}
