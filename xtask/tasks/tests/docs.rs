//! The documentation against the tree: links lead somewhere, and no word of a status or an Event is left unexplained.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

/// Folders that hold no text of ours.
const SKIPPED: &[&str] = &["node_modules", "target", ".git", "out", "cache"];

fn pages(folder: &Path, found: &mut Vec<PathBuf>) {
    files(folder, "md", found);
}

/// All files below a folder with that extension.
fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder)
        .expect("a folder")
        .map(|e| e.expect("an entry"))
    {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if !SKIPPED.iter().any(|skipped| name == *skipped) {
                files(&path, extension, found);
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

/// The text without code blocks and code spans: what looks like a link there is none.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            for (i, part) in line.split('`').enumerate() {
                // A code span keeps its place, so that [`x`](y) stays a link.
                prose.push_str(if i % 2 == 0 { part } else { "code" });
            }
        }
        prose.push('\n');
    }
    prose
}

/// What `](…)` points at.
fn targets(prose: &str) -> impl Iterator<Item = &str> {
    prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
}

/// The anchors of a page's headings, as forges make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if let (false, Some(heading)) = (fenced, line.strip_prefix('#')) {
            let kept = heading
                .trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                .collect::<String>();
            anchors.insert(kept.replace(' ', "-"));
        }
    }
    anchors
}

#[test]
fn every_link_leads_somewhere() {
    let mut found = Vec::new();
    pages(&leasehold_tasks::root(), &mut found);
    assert!(found.len() > 10, "{found:?}");
    let mut broken = Vec::new();
    let mut links = 0;
    for page in &found {
        let text = std::fs::read_to_string(page).expect("a page");
        for target in targets(&prose(&text)) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if path.is_empty() {
                page.clone()
            } else {
                page.parent().expect("a folder").join(path)
            };
            let there = file.exists()
                && (anchor.is_empty()
                    || std::fs::read_to_string(&file).is_ok_and(|text| anchors(&text).contains(anchor)));
            if !there {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(links > 20, "{links} links");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn every_reason_is_explained() {
    let page = std::fs::read_to_string(leasehold_tasks::root().join("docs/operate/troubleshooting.md"))
        .expect("the page");
    let mut missing = BTreeSet::new();
    let mut count = 0;
    let mut check = |word: &str, of: &str| {
        count += 1;
        if !page.contains(&format!("`{word}`")) {
            missing.insert(format!("{word} of {of}"));
        }
    };
    for (name, words) in leasehold_crds::words() {
        words.iter().for_each(|word| check(word, name));
    }
    assert!(count > 100, "only {count} words were found");
    assert!(
        missing.is_empty(),
        "docs/operate/troubleshooting.md does not explain {missing:?}"
    );
}

/// Names of tests that a text gives as code: at least three words. A trailing `…` stands for the rest of a name.
fn named_tests(text: &str) -> impl Iterator<Item = &str> {
    let spans = text.split('`').skip(1).step_by(2);
    spans.filter(|span| {
        let name = span.trim_end_matches('…');
        name.matches('_').count() >= 2
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

#[test]
fn every_test_that_the_design_names_exists() {
    let root = leasehold_tasks::root();
    let mut sources = Vec::new();
    files(&root, "rs", &mut sources);
    files(&root, "sol", &mut sources);
    let sources: String = sources
        .iter()
        .map(|file| std::fs::read_to_string(file).expect("a source"))
        .collect();
    let mut design = Vec::new();
    pages(&root.join("docs/design"), &mut design);
    let (mut count, mut missing) = (0, BTreeSet::new());
    for page in &design {
        let text = std::fs::read_to_string(page).expect("a page");
        for name in named_tests(&text) {
            count += 1;
            let end = if name.ends_with('…') { "" } else { "(" };
            let start = format!(" {}{end}", name.trim_end_matches('…'));
            if !sources.contains(&format!("fn{start}")) && !sources.contains(&format!("function{start}")) {
                missing.insert(name.to_owned());
            }
        }
    }
    assert!(count > 100, "only {count} names were found");
    assert!(
        missing.is_empty(),
        "the design names tests that do not exist: {missing:#?}"
    );
}
