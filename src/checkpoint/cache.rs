//! Where a model lies: a folder, or a repository's name in the Hugging Face cache. Nothing is downloaded.

use crate::{Error, Result};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// The folder of `model`: the path itself if there is such a folder, else the snapshot that `main` names in
/// `$HF_HUB_CACHE`, `$HF_HOME/hub` or `~/.cache/huggingface/hub`. `env` looks a variable up.
pub(super) fn locate(model: &str, env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let folder = Path::new(model);
    if folder.is_dir() {
        return Ok(folder.into());
    }
    if folder.exists() {
        return Err(Error::file(folder, "a model's folder", "a file"));
    }
    let Some(repo) = repo_folder(model) else {
        return Err(Error::file(
            folder,
            "a model's folder, or ORG/NAME in the Hugging Face cache",
            "neither",
        ));
    };
    let Some(hub) = hub(env) else {
        return Err(Error::file(
            folder,
            "a Hugging Face cache ($HF_HUB_CACHE, $HF_HOME or $HOME)",
            "none set",
        ));
    };

    let entry = hub.join(repo);
    if !entry.is_dir() {
        let found = format!("no such folder, and none in the cache (get it with `hf download {model}`)");
        return Err(Error::file(&entry, "a downloaded model", found));
    }
    let main = entry.join("refs/main");
    let revision = super::json::read(&main, 4096)?;
    let revision = String::from_utf8_lossy(&revision).trim().to_string();
    if !plain_name(&revision) {
        return Err(Error::file(&main, "a revision", super::json::clip(&revision)));
    }
    let snapshot = entry.join("snapshots").join(&revision);
    if !snapshot.is_dir() {
        let found = format!("nothing (get it with `hf download {model}`)");
        return Err(Error::file(&snapshot, "the snapshot that refs/main names", found));
    }
    Ok(snapshot)
}

/// `models--ORG--NAME`, if `model` can be the name of a repository.
fn repo_folder(model: &str) -> Option<String> {
    let (org, name) = model.split_once('/')?;
    let valid = |s: &str| {
        !s.is_empty()
            && s.len() <= 96
            && !s.starts_with('.')
            && s.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    (valid(org) && valid(name)).then(|| format!("models--{org}--{name}"))
}

fn hub(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let path = |name| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    path("HF_HUB_CACHE")
        .or_else(|| Some(path("HF_HOME")?.join("hub")))
        .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(path("HOME")?.join(".cache/huggingface/hub")))
}

/// Whether `name` is one file name: no folder, no `..`, no root.
pub(super) fn plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: PathBuf, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn finds_the_snapshot_that_main_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |hub: &str, rev: &str| {
            let repo = dir.path().join(hub).join("models--some-org--A.model_1");
            write(repo.join("refs/main"), &format!("{rev}\n"));
            let snapshot = repo.join("snapshots").join(rev);
            write(snapshot.join("config.json"), "{}");
            snapshot
        };
        let hub_cache = at("a", "r1");
        let home = at("b/hub", "r2");
        let xdg = at("c/huggingface/hub", "r3");
        let user = at("d/.cache/huggingface/hub", "r4");
        let find = |vars: &[(&str, &str)]| {
            let var = |name: &str| {
                vars.iter().find(|(k, _)| *k == name).map(|(_, v)| match *v {
                    "" => OsString::new(),
                    v => dir.path().join(v).into(),
                })
            };
            locate("some-org/A.model_1", var)
        };
        let all = [("HF_HUB_CACHE", "a"), ("HF_HOME", "b"), ("XDG_CACHE_HOME", "c"), ("HOME", "d")];
        assert_eq!(find(&all).unwrap(), hub_cache);
        assert_eq!(find(&all[1..]).unwrap(), home);
        assert_eq!(find(&all[2..]).unwrap(), xdg);
        assert_eq!(find(&all[3..]).unwrap(), user);
        assert_eq!(find(&[("HF_HUB_CACHE", ""), ("HOME", "d")]).unwrap(), user, "empty is unset");
        assert!(find(&[]).unwrap_err().to_string().contains("none set"));
    }

    #[test]
    fn refuses_what_is_not_there_or_leaves_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let find = |model: &str| {
            let hub = dir.path().to_path_buf();
            locate(model, |v| (v == "HF_HUB_CACHE").then(|| hub.clone().into())).unwrap_err().to_string()
        };
        for name in ["nothing", "a/b/c", "../up", "a/..", "/no/such", "", "a/b c", "\0/x"] {
            assert!(find(name).contains("neither"), "{name:?}: {}", find(name));
        }
        assert!(find("org/absent").contains("hf download org/absent"));
        for revision in ["../../x", "/etc", "", "a/b", ".."] {
            write(dir.path().join("models--org--bad/refs/main"), revision);
            assert!(find("org/bad").contains("expected a revision"), "{}", find("org/bad"));
        }
        write(dir.path().join("models--org--bad/refs/main"), "abc");
        assert!(find("org/bad").contains("snapshots/abc"));
    }
}
