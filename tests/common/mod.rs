//! What several test files share.
#![allow(dead_code)]

pub mod chat;
pub mod demo;
pub mod golden;
pub mod gpu;
pub mod hollow;
pub mod pieces;

/// A folder for all tests of a program. Statics are never dropped, so it is removed when the program ends.
pub fn folder_for_all() -> std::path::PathBuf {
    static FOLDERS: std::sync::Mutex<Vec<tempfile::TempDir>> = std::sync::Mutex::new(Vec::new());
    extern "C" fn remove() {
        FOLDERS.lock().unwrap_or_else(|e| e.into_inner()).clear();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().into();
    FOLDERS.lock().unwrap().push(folder);
    // SAFETY: `remove` may run when the program ends: nobody holds the lock for long, and it unwinds nowhere.
    assert_eq!(unsafe { libc::atexit(remove) }, 0);
    path
}
