//! Control flow, liveness and register slots; then the finished program.

use std::collections::HashMap;

use super::{FnBody, ListAt, Next, Pre, Resolve, Slot, Tables};
use crate::ast::{Ast, Function, RegId, Ty};
use crate::exec::cold;
use crate::program::{Layout, Op, OpInfo, Program, Table, Target};
use crate::{Error, Result};

/// Bits of liveness that are worth their memory; beyond, every register keeps a slot of its own.
const MAX_LIVENESS: usize = 1 << 30;

/// Basic blocks: first instruction, one past the last, successors.
struct Flow {
    blocks: Vec<(usize, usize)>,
    next: Vec<Vec<usize>>,
}

fn blocks(body: &FnBody) -> Flow {
    let n = body.pre.len();
    let mut leader = vec![false; n + 1];
    leader[0] = true;
    let target = |ast: u32| body.start[ast as usize] as usize;
    for (i, p) in body.pre.iter().enumerate() {
        match &p.next {
            Next::Fall => continue,
            Next::Jump(t) => leader[target(*t)] = true,
            Next::Table(ts) => ts.iter().for_each(|t| leader[target(*t)] = true),
            Next::End => {}
        }
        leader[i + 1] = true;
    }
    let starts: Vec<usize> = (0..n).filter(|&i| leader[i]).collect();
    let mut block_of = vec![0; n];
    let mut blocks = Vec::with_capacity(starts.len());
    for (b, &s) in starts.iter().enumerate() {
        let e = starts.get(b + 1).copied().unwrap_or(n);
        block_of[s..e].fill(b);
        blocks.push((s, e));
    }
    let next = blocks
        .iter()
        .map(|&(_, e)| {
            let p = &body.pre[e - 1];
            let mut out = Vec::new();
            let leaves =
                matches!(p.next, Next::End) || (p.guard.is_none() && matches!(p.next, Next::Jump(_)));
            if !leaves && e < n {
                out.push(block_of[e]);
            }
            if p.guard.is_some() && p.next == Next::End && e < n {
                out.push(block_of[e]);
            }
            match &p.next {
                Next::Jump(t) if target(*t) < n => out.push(block_of[target(*t)]),
                Next::Table(ts) => {
                    out.extend(ts.iter().map(|t| target(*t)).filter(|&t| t < n).map(|t| block_of[t]))
                }
                _ => {}
            }
            out
        })
        .collect();
    Flow { blocks, next }
}

/// Immediate post-dominator of each block (Cooper, Harvey, Kennedy), `None` where paths only meet at the end.
fn post_dominators(f: &Flow) -> Vec<Option<usize>> {
    let n = f.blocks.len();
    let exit = n;
    let mut preds = vec![Vec::new(); n + 1];
    // Edges reversed: the walk starts at the exit.
    for b in 0..n {
        for &s in &f.next[b] {
            preds[s].push(b);
        }
        if f.next[b].is_empty() {
            preds[exit].push(b);
        }
    }
    let mut order = Vec::with_capacity(n + 1);
    let mut state = vec![0u8; n + 1];
    let mut stack = vec![(exit, 0usize)];
    state[exit] = 1;
    while let Some((b, i)) = stack.pop() {
        if let Some(&p) = preds[b].get(i) {
            stack.push((b, i + 1));
            if state[p] == 0 {
                state[p] = 1;
                stack.push((p, 0));
            }
        } else {
            order.push(b);
        }
    }
    let mut number = vec![usize::MAX; n + 1];
    for (i, &b) in order.iter().enumerate() {
        number[b] = i;
    }
    let mut idom = vec![usize::MAX; n + 1];
    idom[exit] = exit;
    let mut changed = true;
    while changed {
        changed = false;
        for &b in order.iter().rev() {
            if b == exit {
                continue;
            }
            let mut new = usize::MAX;
            let exits = [exit];
            let succ: &[usize] = if f.next[b].is_empty() { &exits } else { &f.next[b] };
            for &s in succ {
                if number[s] == usize::MAX || idom[s] == usize::MAX {
                    continue;
                }
                new = if new == usize::MAX {
                    s
                } else {
                    let (mut x, mut y) = (s, new);
                    while x != y {
                        while number[x] < number[y] {
                            x = idom[x];
                        }
                        while number[y] < number[x] {
                            y = idom[y];
                        }
                    }
                    x
                };
            }
            if new != usize::MAX && idom[b] != new {
                idom[b] = new;
                changed = true;
            }
        }
    }
    (0..n).map(|b| (idom[b] != usize::MAX && idom[b] != exit).then_some(idom[b])).collect()
}

/// Registers an instruction reads, and writes.
fn visit(p: &Pre, mut read: impl FnMut(RegId), mut write: impl FnMut(RegId)) {
    if let Some((g, _)) = p.guard {
        read(g);
    }
    for s in p.s.iter().chain(&p.list) {
        match *s {
            Slot::Use(r) => read(r),
            Slot::Def(r) => write(r),
            Slot::Both(r) => {
                read(r);
                write(r);
            }
            _ => {}
        }
    }
    if let Some(r) = p.y_pred {
        write(r);
    }
}

/// First and last instruction at which each register holds a value that is wanted.
fn intervals(body: &FnBody, flow: &Flow) -> Vec<Option<(usize, usize)>> {
    let n = body.regs.len();
    let words = n.div_ceil(64);
    let mut out: Vec<Option<(usize, usize)>> = vec![None; n];
    fn widen(out: &mut [Option<(usize, usize)>], r: usize, at: usize) {
        let (a, b) = out[r].unwrap_or((at, at));
        out[r] = Some((a.min(at), b.max(at)));
    }
    for (i, p) in body.pre.iter().enumerate() {
        let mut used = Vec::new();
        visit(p, |r| used.push(r), |_| {});
        visit(p, |_| {}, |r| used.push(r));
        used.into_iter().for_each(|r| widen(&mut out, r as usize, i));
    }
    if words * 64 * flow.blocks.len() * 3 > MAX_LIVENESS {
        let last = body.pre.len().saturating_sub(1);
        return out.into_iter().map(|i| i.map(|_| (0, last))).collect();
    }
    let nb = flow.blocks.len();
    let mut uses = vec![0u64; words * nb];
    let mut kills = vec![0u64; words * nb];
    for (b, &(s, e)) in flow.blocks.iter().enumerate() {
        for p in &body.pre[s..e] {
            let base = b * words;
            let partial = p.guard.is_some();
            let mut writes = Vec::new();
            visit(
                p,
                |r| {
                    let (w, bit) = (base + r as usize / 64, 1 << (r % 64));
                    if kills[w] & bit == 0 {
                        uses[w] |= bit;
                    }
                },
                |r| writes.push(r),
            );
            for r in writes {
                let (w, bit) = (base + r as usize / 64, 1 << (r % 64));
                if partial {
                    // Lanes that the guard leaves out keep the old value.
                    if kills[w] & bit == 0 {
                        uses[w] |= bit;
                    }
                } else {
                    kills[w] |= bit;
                }
            }
        }
    }
    let mut live_in = uses.clone();
    let mut changed = true;
    while changed {
        changed = false;
        for b in (0..nb).rev() {
            for w in 0..words {
                let out_w = flow.next[b].iter().fold(0, |m, &s| m | live_in[s * words + w]);
                let new = uses[b * words + w] | out_w & !kills[b * words + w];
                if new & !live_in[b * words + w] != 0 {
                    live_in[b * words + w] |= new;
                    changed = true;
                }
            }
        }
    }
    for (b, &(s, e)) in flow.blocks.iter().enumerate() {
        for w in 0..words {
            let mut bits = live_in[b * words + w];
            while bits != 0 {
                let r = w * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                widen(&mut out, r, s);
            }
            let mut bits = flow.next[b].iter().fold(0, |m, &x| m | live_in[x * words + w]);
            while bits != 0 {
                let r = w * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                widen(&mut out, r, e - 1);
            }
        }
    }
    out
}

#[derive(Clone, Copy, PartialEq)]
enum Pool {
    Pred,
    Narrow,
    Wide,
}

fn pool(ty: Ty) -> Pool {
    match ty {
        Ty::Pred => Pool::Pred,
        t if t.bytes() == 8 => Pool::Wide,
        _ => Pool::Narrow,
    }
}

/// Linear scan: the number of each register in its pool, and how many each pool needs.
fn scan(body: &FnBody, live: &[Option<(usize, usize)>], which: Pool) -> (HashMap<RegId, u32>, u32) {
    let mut list: Vec<(usize, usize, RegId)> = live
        .iter()
        .enumerate()
        .filter(|(r, _)| pool(body.regs[*r]) == which)
        .filter_map(|(r, i)| i.map(|(a, b)| (a, b, r as RegId)))
        .collect();
    list.sort_unstable();
    let mut active = std::collections::BinaryHeap::new();
    let mut free = std::collections::BinaryHeap::new();
    let (mut place, mut n) = (HashMap::new(), 0u32);
    for (a, b, r) in list {
        while let Some(&std::cmp::Reverse((end, s))) = active.peek() {
            // A value read for the last time here may be overwritten here: sources are read first.
            if end > a {
                break;
            }
            active.pop();
            free.push(std::cmp::Reverse(s));
        }
        let s = free.pop().map_or_else(
            || {
                n += 1;
                n - 1
            },
            |std::cmp::Reverse(s)| s,
        );
        place.insert(r, s);
        // Nor may a result that nobody reads share a row with another result of its instruction.
        active.push(std::cmp::Reverse((b.max(a + 1), s)));
    }
    (place, n)
}

/// Puts the functions one after the other.
pub(super) fn assemble(
    ast: &Ast,
    kernel: &Function,
    functions: &[&Function],
    bodies: Vec<FnBody>,
    mut t: Tables,
    resolve: &dyn Resolve,
) -> Result<Program> {
    let mut ops = Vec::new();
    let mut info = Vec::new();
    let mut extra: Vec<u16> = Vec::new();
    let mut tables = Vec::new();
    let mut layouts = Vec::new();
    let has_wgmma = !t.wgmma.is_empty();
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    let (mut rows, mut preds, mut registers) = (0u32, 1u32, 0u32);
    for (k, body) in bodies.iter().enumerate() {
        let flow = blocks(body);
        let join = post_dominators(&flow);
        let live = intervals(body, &flow);
        let (wide, nwide) = scan(body, &live, Pool::Wide);
        let (narrow, nnarrow) = scan(body, &live, Pool::Narrow);
        let (predicates, npred) = scan(body, &live, Pool::Pred);
        let (first_wide, first_narrow, first_pred) = (rows, rows + 2 * nwide, preds);
        rows = first_narrow + nnarrow;
        preds += npred;
        registers = registers.max(2 * nwide + nnarrow);
        if rows >= 0x7ff0 || preds >= 0x7ff0 {
            return Err(Error::parse(
                functions[k].line,
                format!("function `{}` needs too many registers at once", functions[k].name),
            ));
        }
        let of = |r: RegId| -> u16 {
            match pool(body.regs[r as usize]) {
                Pool::Pred => (first_pred + predicates.get(&r).copied().unwrap_or(0)) as u16,
                Pool::Wide => (first_wide + 2 * wide.get(&r).copied().unwrap_or(0)) as u16,
                Pool::Narrow => (first_narrow + narrow.get(&r).copied().unwrap_or(0)) as u16,
            }
        };
        let slot = |s: Slot| match s {
            Slot::None => 0,
            Slot::Raw(v) => v,
            Slot::Def(r) | Slot::Use(r) | Slot::Both(r) => of(r),
        };
        let entry = ops.len() as u32;
        let at = |ast_index: u32| entry + body.start[ast_index as usize];
        for (b, &(s, e)) in flow.blocks.iter().enumerate() {
            for (i, p) in body.pre[s..e].iter().enumerate() {
                let mut op = Op { f: p.f, s: p.s.map(slot), guard: 0, imm: p.imm, x: p.x, y: p.y };
                if let Some((g, negated)) = p.guard {
                    op.guard = of(g) << 1 | u16::from(negated);
                }
                if let Some(r) = p.y_pred {
                    op.y = u32::from(of(r));
                }
                if p.list_at != ListAt::Nowhere {
                    let index = extra.len() as u32;
                    extra.extend(p.list.iter().map(|&s| slot(s)));
                    match p.list_at {
                        ListAt::X => op.x = index,
                        ListAt::Y => op.y = index,
                        _ => t.mem[p.x as usize].regs = index,
                    }
                }
                let meet = if s + i + 1 == e {
                    join[b].map_or(u32::MAX, |j| entry + flow.blocks[j].0 as u32)
                } else {
                    u32::MAX
                };
                match &p.next {
                    Next::Jump(target) => {
                        op.x = at(*target);
                        op.y = meet;
                    }
                    Next::Table(list) => {
                        tables.push(Table { targets: list.iter().map(|&x| at(x)).collect() });
                        op.x = (tables.len() - 1) as u32;
                        op.y = meet;
                    }
                    _ => {}
                }
                if has_wgmma {
                    let (mut r, mut w) = (Vec::new(), Vec::new());
                    for s in p.s.iter().chain(&p.list) {
                        let (reg, out) = match *s {
                            Slot::Use(x) => (x, &mut r),
                            Slot::Def(x) | Slot::Both(x) => (x, &mut w),
                            _ => continue,
                        };
                        match pool(body.regs[reg as usize]) {
                            Pool::Pred => {}
                            Pool::Narrow => out.push(of(reg)),
                            Pool::Wide => out.extend([of(reg), of(reg) + 1]),
                        }
                    }
                    reads.push(r);
                    writes.push(w);
                }
                ops.push(op);
                info.push(OpInfo { line: p.line, loc: p.loc, name: p.name, class: p.class });
            }
        }
        layouts.push(Layout {
            address: resolve.address(&functions[k].name).unwrap_or(0),
            entry,
            params: body.params.clone(),
            results: body.results.clone(),
            rows: (first_wide, rows),
            wide: first_narrow,
            preds: (first_pred, preds),
            local: body.local,
        });
        // Calls name their callee and its slot by function number.
        for p in &body.pre {
            if p.f as usize == cold::<crate::exec::control::CallOp>() as usize {
                let (call, name) = &mut t.calls[p.x as usize];
                match &mut call.target {
                    Target::Register(s) => {
                        if let Slot::Use(r) = p.s[0] {
                            *s = of(r);
                        }
                    }
                    Target::Entry(f) => {
                        let name = ast.aliases.iter().find(|a| a.0 == *name).map_or(&*name, |a| &a.1);
                        *f = functions.iter().position(|g| g.name == *name).unwrap_or(0) as u32;
                    }
                    Target::System(_) => {}
                }
            }
        }
    }
    extra.extend([0; 16]); // operand lists are read as slices of a fixed length at most
    t.mem.push(crate::program::MemOp::default());
    let param_bytes = kernel.params.iter().fold(0u64, |at, &v| {
        let var = &kernel.vars[v as usize];
        at.next_multiple_of(u64::from(var.align)) + var.bytes
    });
    Ok(Program {
        name: kernel.name.clone(),
        ops,
        info,
        names: t.names,
        consts: t.consts,
        extra,
        mem: t.mem,
        tables,
        mma: t.mma,
        wmma: t.wmma,
        moves: t.moves,
        calls: t.calls.into_iter().map(|c| c.0).collect(),
        copies: t.copies,
        wgmma: t.wgmma,
        rows: rows as usize + 2,
        preds: preds as usize,
        local_bytes: t.local.next_multiple_of(8),
        static_shared: t.shared,
        param_bytes: param_bytes as u32,
        registers,
        functions: layouts,
        has_fences: t.has_fences,
        has_wgmma,
        reads,
        writes,
    })
}
