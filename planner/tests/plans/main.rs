//! Golden plans. Each test plays a story of a lease or of a reservation, and compares the plans with a file in
//! `snapshots/`, so that a change of behaviour is reviewed as a diff of that file. See docs/develop/testing.md.
#![allow(clippy::unwrap_used, reason = "the fixtures of a test fail by panicking too")]

mod account;
mod fixtures;
mod market;
mod page;
mod site;

mod accepting;
mod closing;
mod faults;
mod funds;
mod lease_fault;
mod lease_to_active;
mod objects;
mod recovery;
mod reservation_to_end;
mod stopping;
mod waiting;

/// Compares a story with its snapshot.
fn snapshot(name: &str, page: &page::Page) {
    let mut settings = insta::Settings::new();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(name, page.text()));
}

/// A snapshot that no story writes would go stale unseen.
#[test]
fn every_snapshot_belongs_to_a_story() {
    // Cargo runs tests in the folder of their package.
    let folder = std::path::Path::new("tests/plans");
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap();
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let sources: String = files.filter(|path| path.is_file()).map(read).collect();
    for entry in std::fs::read_dir(folder.join("snapshots")).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let name = file.split('.').next().unwrap();
        // The stories of every reason are named after their reason.
        let many = ["close_", "decline_", "stop_", "wait_"].iter().any(|prefix| {
            let reason = name.strip_prefix(prefix).unwrap_or_default();
            reason.starts_with(|c: char| c.is_ascii_uppercase()) && sources.contains(&format!("::{reason} "))
        });
        assert!(
            many || sources.contains(&format!("\"{name}\"")),
            "no story writes snapshots/{file}: delete it"
        );
    }
}
