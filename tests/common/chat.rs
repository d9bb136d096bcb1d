//! Sequences to their ends, and models whose config was edited.

use super::golden::{data, tiny};
use mllmseg::chat::{Event, Generation, Generator, Id, Options, Prompt, Reply};
use mllmseg::checkpoint::Checkpoint;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Steps until all that was submitted is answered.
pub fn finish_all(g: &mut Generator, ids: &[Id]) -> Vec<Reply> {
    let mut replies = BTreeMap::new();
    while replies.len() < ids.len() {
        for event in g.step().unwrap() {
            match event {
                Event::Done(id, reply) => assert!(replies.insert(id, *reply).is_none()),
                Event::Failed(_, e) => panic!("{e}"),
                Event::Tokens(..) => {}
            }
        }
    }
    ids.iter().map(|id| replies.remove(id).unwrap()).collect()
}

/// One prompt's answer.
pub fn finish(g: &mut Generator, prompt: Prompt, generation: Generation) -> Reply {
    let id = g.submit(prompt, generation).unwrap();
    finish_all(g, &[id]).remove(0)
}

/// The checkpoint `from` in the folder `to`, with other fields in its config.
pub fn edited(from: &Path, to: &Path, edit: impl Fn(&mut serde_json::Value)) -> String {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap();
        if name == "config.json" {
            let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            edit(&mut config);
            std::fs::write(to.join(name), config.to_string()).unwrap();
        } else {
            std::os::unix::fs::symlink(&path, to.join(name)).unwrap();
        }
    }
    to.display().to_string()
}

/// `tests/data/ntk.json`, made by tools/data/ntk_vectors.py.
pub fn ntk() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(data("ntk.json")).unwrap()).unwrap()
}

/// The run of `ntk.json`, a prompt of 100 tokens and six more where 64 is the maximum: equal tokens; the relative L2 distance of the logits.
pub fn past_the_maximum(options: Options) -> f64 {
    let run = &ntk()["run"];
    let ids = |v: &serde_json::Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap() };
    let folder = tempfile::tempdir().unwrap();
    let dir = edited(&tiny().dir, &folder.path().join("short"), |c| {
        c["llm_config"]["max_position_embeddings"] = run["max"].clone();
    });
    let checkpoint = Arc::new(Checkpoint::open(&dir).unwrap());
    let mut g = Generator::new(checkpoint, &options, Vec::new(), &mut |_, _| ()).unwrap();
    let prompt = g.prompt(&ids(&run["prompt"]), 2039, &[]).unwrap();
    let tokens = ids(&run["tokens"]);
    let generation = Generation { max_new_tokens: tokens.len(), keep_logits: true, ..Generation::default() };
    let reply = finish(&mut g, prompt, generation);
    assert_eq!(reply.tokens, tokens);
    let (mut error, mut norm) = (0.0, 0.0);
    for (found, expected) in reply.logits.iter().zip(run["logits"].as_array().unwrap()) {
        let expected: Vec<f64> = serde_json::from_value(expected["values"].clone()).unwrap();
        let found = found.iter().step_by(run["stride"].as_u64().unwrap() as usize);
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.zip(expected) {
            error += (f64::from(*f) - e).powi(2);
            norm += e * e;
        }
    }
    f64::sqrt(error / norm)
}
