//! docs/reference/values.md: the chart's values with their comments, each checked against values.schema.json.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{Generated, cell};

const CHART: &str = "charts/leasehold";

/// A value of values.yaml.
#[derive(Debug, PartialEq)]
struct Entry {
    /// `market.closerKey.secretName`.
    path: String,
    /// As it is written; none for a value that only holds others.
    default: Option<String>,
    meaning: String,
}

pub(super) fn reference() -> Result<Generated> {
    let chart = leasehold_testtools::root().join(CHART);
    let values = fs::read_to_string(chart.join("values.yaml")).context("read values.yaml")?;
    let schema: Value = serde_json::from_slice(&fs::read(chart.join("values.schema.json"))?)
        .context("read values.schema.json")?;
    let mut text = String::from(
        "# Values of the chart\n\n\
         Written by `cargo xtask codegen` from `charts/leasehold/values.yaml` and its schema, which refuses any other \
         value.\n\n| Value | Default | Meaning |\n|---|---|---|\n",
    );
    for entry in entries(&values) {
        let Some(schema) = find(&schema, &entry.path) else {
            bail!(
                "values.schema.json does not know {}, which values.yaml has",
                entry.path
            );
        };
        let Some(default) = entry.default else { continue };
        let meaning = match (entry.meaning.is_empty(), entry.path.rsplit('.').next()) {
            (false, _) => entry.meaning,
            (true, Some(name @ ("resources" | "nodeSelector" | "tolerations" | "affinity"))) => {
                format!("`{name}` of the pods.")
            }
            (true, Some("podAnnotations")) => "Further annotations of the pods.".to_owned(),
            (true, _) => bail!(
                "values.yaml: {} has no comment that says what it means",
                entry.path
            ),
        };
        let choices = match schema["enum"].as_array() {
            Some(choices) => format!(
                " One of {}.",
                choices
                    .iter()
                    .filter_map(Value::as_str)
                    .map(|c| format!("`{c}`"))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            None => String::new(),
        };
        writeln!(
            text,
            "| `{}` | `{default}` | {}{choices} |",
            entry.path,
            cell(&meaning)
        )?;
    }
    Ok(Generated {
        path: "docs/reference/values.md".to_owned(),
        text,
    })
}

/// The schema of a value, references followed.
fn find<'a>(root: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(root, |schema, name| {
        let schema = schema.get("properties")?.get(name)?;
        match schema.get("$ref").and_then(Value::as_str) {
            Some(reference) => root.pointer(reference.strip_prefix('#')?),
            None => Some(schema),
        }
    })
}

/// Keys, their comments and what they are set to. It reads the plain YAML that values.yaml is written in: two spaces
/// a level, a key a line; a list's items and a value's inline form belong to the key above.
fn entries(yaml: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut above: Vec<String> = Vec::new();
    let mut comment = String::new();
    // Where a multi-line value began, whose lines belong to it.
    let mut inside: Option<usize> = None;
    for line in yaml.lines() {
        let depth = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(began) = inside {
            if depth > began && !line.is_empty() {
                if let Some(default) = entries.last_mut().and_then(|entry| entry.default.as_mut()) {
                    default.push_str(if default.is_empty() { "" } else { ", " });
                    default.push_str(line);
                }
                continue;
            }
            inside = None;
        }
        if let Some(words) = line.strip_prefix('#') {
            // What stands further in is an example.
            if !words.starts_with("  ") {
                comment.push_str(words);
                comment.push('\n');
            }
            continue;
        }
        let Some((key, value)) = line.split_once(':') else {
            comment.clear();
            continue;
        };
        above.truncate(depth / 2);
        above.push(key.to_owned());
        let value = value.trim();
        let meaning = std::mem::take(&mut comment).trim().to_owned();
        let name = above.join(".");
        // A free-form value in several lines.
        let free = matches!(key, "resources" | "nodeSelector" | "tolerations" | "labels") && value.is_empty();
        if free {
            inside = Some(depth);
        }
        let default = (free || !value.is_empty()).then(|| value.to_owned());
        entries.push(Entry {
            path: name,
            default,
            meaning,
        });
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_keys_comments_and_examples_as_values_yaml_has_them() {
        let found = entries(
            "# Head.\n\n# What it is,\n# in two lines.\nlist: []\n#  - name: example\nouter:\n  # Inner.\n  inner: 2\n  \
             nodeSelector:\n    os: linux\n  last: {}\n",
        );
        let paths: Vec<_> = found
            .iter()
            .map(|e| (e.path.as_str(), e.default.as_deref()))
            .collect();
        assert_eq!(
            paths,
            [
                ("list", Some("[]")),
                ("outer", None),
                ("outer.inner", Some("2")),
                ("outer.nodeSelector", Some("os: linux")),
                ("outer.last", Some("{}")),
            ]
        );
        assert_eq!(found[0].meaning, "What it is,\n in two lines.");
        assert_eq!(found[2].meaning, "Inner.");
    }
}
