//! Where the repository is. It is found when a program runs: a path that was compiled in would name the checkout that
//! the program was built in, which may be another one, or be gone.

use std::path::{Path, PathBuf};

/// The repository's root: the nearest directory with the workspace's manifest, upwards from the package that cargo
/// runs, or from the current directory.
///
/// # Panics
/// When neither is inside a checkout of this repository, with a message that says what to do.
#[must_use]
pub fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let current = std::env::current_dir().ok();
    [package, current]
        .into_iter()
        .flatten()
        .find_map(|from| workspace_above(&from))
        .unwrap_or_else(|| {
            panic!(
                "the current directory is not in a checkout of Leasehold: change into one and run this again"
            )
        })
}

fn workspace_above(from: &Path) -> Option<PathBuf> {
    from.ancestors()
        .find(|folder| is_workspace(folder))
        .map(Path::to_owned)
}

/// Another project's workspace around or beside ours has no such member.
fn is_workspace(folder: &Path) -> bool {
    folder.join("tests/tools/Cargo.toml").is_file()
        && std::fs::read_to_string(folder.join("Cargo.toml"))
            .is_ok_and(|manifest| manifest.lines().any(|line| line.trim() == "[workspace]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkout() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("tests/tools/src")).unwrap();
        std::fs::write(folder.path().join("Cargo.toml"), "[workspace]\nmembers = []\n").unwrap();
        std::fs::write(folder.path().join("tests/tools/Cargo.toml"), "[package]\n").unwrap();
        folder
    }

    #[test]
    fn the_root_is_found_from_any_folder_below_it() {
        let folder = checkout();
        let below = folder.path().join("tests/tools/src");
        assert_eq!(workspace_above(&below).as_deref(), Some(folder.path()));
        assert_eq!(workspace_above(folder.path()).as_deref(), Some(folder.path()));
    }

    #[test]
    fn another_projects_workspace_is_not_taken_for_ours() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Cargo.toml"), "[workspace]\n").unwrap();
        assert_eq!(workspace_above(folder.path()), None);
    }

    #[test]
    fn two_checkouts_have_each_their_own_root() {
        let (one, other) = (checkout(), checkout());
        assert_ne!(workspace_above(one.path()), workspace_above(other.path()));
    }
}
