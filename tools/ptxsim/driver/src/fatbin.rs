//! Fat binaries: containers of PTX and machine code for several architectures. Only the PTX is of use here.
//!
//! The layout is not documented by NVIDIA; this follows what nvcc 13.0 and `fatbinary` write: a header (magic, version,
//! header bytes, payload bytes), then entries (kind, header bytes, payload bytes, compressed bytes, architecture, flags,
//! uncompressed bytes), each followed by its payload.

use std::io::Read;

/// First word of a fat binary.
pub const MAGIC: u32 = 0xba55_ed50;
/// First word of the structure that compiled-in fat binaries are reached through (`__fatBinC_Wrapper_t`).
pub const WRAPPER: u32 = 0x4662_43b1;

const PTX: u16 = 1;
const LZ4: u64 = 0x2000;
const ZSTD: u64 = 0x8000;
/// More PTX than any real file has: guards against forged sizes.
const MAX_PTX: u64 = 1 << 28;

/// Bytes of the fat binary that starts with `header` (at least 16 bytes).
pub fn total_bytes(header: &[u8]) -> Option<usize> {
    let (head, payload) = (u16_at(header, 6)?, u64_at(header, 8)?);
    usize::try_from(payload).ok()?.checked_add(head.into()).filter(|n| *n as u64 <= MAX_PTX)
}

/// The PTX in a fat binary: architecture (80 for sm_80) and text, in order.
///
/// # Errors
/// What is malformed.
pub fn ptx(bytes: &[u8]) -> Result<Vec<(u32, String)>, String> {
    let cut = |what: &str| format!("fat binary: {what} is cut off");
    if u32_at(bytes, 0) != Some(MAGIC) {
        return Err("fat binary: wrong magic number".into());
    }
    let end = total_bytes(bytes).ok_or_else(|| cut("header"))?.min(bytes.len());
    let mut at = u16_at(bytes, 6).ok_or_else(|| cut("header"))? as usize;
    let (mut found, mut room) = (Vec::new(), MAX_PTX);
    while at < end {
        let entry = &bytes[at..end];
        let field = || cut("entry");
        let kind = u16_at(entry, 0).ok_or_else(field)?;
        let head = u32_at(entry, 4).ok_or_else(field)? as usize;
        let payload = usize::try_from(u64_at(entry, 8).ok_or_else(field)?).map_err(|_| field())?;
        let packed = u32_at(entry, 16).ok_or_else(field)? as usize;
        let arch = u32_at(entry, 28).ok_or_else(field)?;
        let flags = u64_at(entry, 40).ok_or_else(field)?;
        let unpacked = u64_at(entry, 56).ok_or_else(field)?;
        let next = head.checked_add(payload).filter(|n| *n >= 64).ok_or_else(field)?;
        if kind == PTX {
            let data = entry.get(head..next).ok_or_else(|| cut("PTX"))?;
            let compressed = data.get(..packed).filter(|_| packed > 0).unwrap_or(data);
            let text = if flags & (LZ4 | ZSTD) == 0 {
                data.to_vec()
            } else if unpacked > room {
                return Err(format!("fat binary: more than {MAX_PTX} bytes of PTX"));
            } else if flags & ZSTD != 0 {
                let mut text = Vec::new();
                let decoder = ruzstd::decoding::StreamingDecoder::new(compressed);
                let decoder = decoder.map_err(|e| format!("fat binary: compressed PTX: {e}"))?;
                let read = decoder.take(unpacked).read_to_end(&mut text);
                read.map_err(|e| format!("fat binary: compressed PTX: {e}"))?;
                text
            } else if unpacked > 255 * (compressed.len() as u64 + 64) {
                // LZ4 cannot pack tighter.
                return Err(format!("fat binary: {unpacked} bytes of PTX in {} bytes", compressed.len()));
            } else {
                lz4_flex::block::decompress(compressed, unpacked as usize)
                    .map_err(|e| format!("fat binary: compressed PTX: {e}"))?
            };
            room = room.saturating_sub(text.len() as u64);
            let text = text.split(|b| *b == 0).next().unwrap_or_default().to_vec();
            let text = String::from_utf8(text).map_err(|_| "fat binary: PTX that is no text".to_owned())?;
            found.push((arch, text));
        }
        at = at.saturating_add(next);
    }
    Ok(found)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&[u8]; 4] = [
        include_bytes!("../tests/data/add.none.fatbin"),
        include_bytes!("../tests/data/add.speed.fatbin"),
        include_bytes!("../tests/data/add.size.fatbin"),
        include_bytes!("../tests/data/add.cubin_only.fatbin"),
    ];

    #[test]
    fn every_compression_gives_the_same_text() {
        let [plain, lz4, zstd, none] = FILES.map(|f| ptx(f).unwrap());
        assert_eq!(plain.len(), 1);
        assert_eq!(plain[0].0, 80);
        assert!(plain[0].1.contains(".entry add(") && plain[0].1.trim_end().ends_with('}'));
        assert!(lz4 == plain && zstd == plain && none.is_empty());
    }

    #[test]
    fn damaged_files_give_errors_not_panics() {
        for file in FILES {
            for n in 0..file.len() {
                let _ = ptx(&file[..n]);
            }
            // Every byte of the headers and of some of the payload, with values at the edges.
            for at in (0..file.len()).filter(|i| *i < 96 || i % 7 == 0) {
                for value in [0, 1, 0x7f, 0x80, 0xff] {
                    let mut bad = file.to_vec();
                    bad[at] = value;
                    let _ = ptx(&bad);
                }
            }
        }
        // An entry of machine code whose size reaches past the end of all addresses.
        let mut bad = FILES[3].to_vec();
        bad[20..24].fill(0);
        bad[24..32].fill(0xff);
        assert_eq!(ptx(&bad), Ok(Vec::new()));
        assert!(ptx(b"").is_err() && ptx(&[0; 64]).is_err());
    }
}
