//! Checkpoints of real widths that take no room.

use mllmseg::checkpoint::config::Config;
use mllmseg::checkpoint::{Checkpoint, names};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

/// A checkpoint of a preset's widths, two layers a tower, all weights zero: a file with holes.
pub fn hollow(dir: &Path, preset: &str) -> Arc<Checkpoint> {
    let mut config = serde_json::from_str::<serde_json::Value>(preset).unwrap()["config"].take();
    for tower in ["vision_config", "llm_config"] {
        config[tower]["num_hidden_layers"] = 2.into();
    }
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let config = Config::read(&dir.join("config.json")).unwrap();
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in names::expected(&config, Some(config.vision_config.hidden_size)) {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name, serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = File::create(dir.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + at) as u64).unwrap();
    Arc::new(Checkpoint::open_dir(dir).unwrap())
}
