//! Chat at the 8B model's widths: one layer of each tower, synthetic weights, a small vocabulary.

mod common;

use mllmseg::chat::{Event, Generation, Generator, Options, Picture, Reply};
use mllmseg::image::{Rgb, tiles};
use std::sync::Arc;

/// 12 tiles and the thumbnail, 3,400 tokens, in parts; once more behind its own K and V; and cut into 6 tiles beside it.
#[test]
fn twelve_tiles() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Arc::new(common::pieces::checkpoint(folder.path()));
    let options = Options { cache_tokens: 8192, ..Options::default() };
    let mut g = Generator::new(checkpoint, &options, Vec::new(), &mut |_, _| ()).unwrap();
    let pixel = |i: usize| ((i / 3 % 1600) ^ (i / 4800)) as u8;
    let source = Rgb::new(1600, 1200, (0..1600 * 1200 * 3).map(pixel).collect()).unwrap();
    let mut ask = |max: usize| -> Reply {
        let picture = Picture::new(tiles(&source, 1, max, 448, true).unwrap());
        let image = vec![63; 256 * picture.tiles()];
        let ids = [(1..40).collect(), image, (1..33).collect::<Vec<u32>>()].concat();
        let prompt = g.prompt(&ids, 63, &[picture]).unwrap();
        g.submit(prompt, Generation { max_new_tokens: 4, keep_logits: true, ..Generation::default() })
            .unwrap();
        loop {
            for event in g.step().unwrap() {
                if let Event::Done(_, reply) = event {
                    return *reply;
                }
            }
        }
    };
    let reply = ask(12);
    assert_eq!((reply.prompt_tokens, reply.cached_tokens), (39 + 13 * 256 + 32, 0));
    assert!(reply.logits.iter().flatten().all(|v| v.is_finite()));
    let again = ask(12);
    assert_eq!(again.cached_tokens, 3392 / 64 * 64);
    assert!(again.tokens == reply.tokens && again.logits == reply.logits);
    let six = ask(6);
    assert!(six.prompt_tokens == 39 + 7 * 256 + 32 && six.cached_tokens == 0, "other tiles");
    assert!(six.logits[0] != reply.logits[0]);
}
