//! docs/reference/api.md: every kind, field, bound and rule, read off the same schemas that the API server gets.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

use super::{Generated, cell};

pub(super) fn reference() -> Result<Generated> {
    let mut text = String::from(
        "# API reference\n\n\
         Written by `cargo xtask codegen` from `crds/`; `kubectl explain` tells the same.\n\n\
         All kinds are of `leasehold.dev/v1alpha1`. Prices are decimal strings in whole tokens of the payment network, \
         amounts are decimal strings of base units, sizes are Kubernetes quantities, durations are written as `1h30m`.\n\n",
    );
    let crds = leasehold_crds::all();
    text.push_str("| Kind | Short | Scope | Meaning |\n|---|---|---|---|\n");
    for crd in &crds {
        let names = &crd.spec.names;
        let short = names
            .short_names
            .iter()
            .flatten()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>();
        writeln!(
            text,
            "| [{kind}](#{anchor}) | {short} | {scope} | {meaning} |",
            kind = names.kind,
            anchor = names.kind.to_lowercase(),
            short = short.join(", "),
            scope = scope(crd),
            meaning = cell(schema(crd)?.description.as_deref().unwrap_or_default()),
        )?;
    }
    for crd in &crds {
        kind(&mut text, crd)?;
    }
    Ok(Generated {
        path: "docs/reference/api.md".to_owned(),
        text,
    })
}

fn scope(crd: &CustomResourceDefinition) -> &'static str {
    if crd.spec.scope == "Namespaced" {
        "namespace"
    } else {
        "cluster"
    }
}

fn schema(crd: &CustomResourceDefinition) -> Result<&JSONSchemaProps> {
    crd.spec
        .versions
        .first()
        .and_then(|version| version.schema.as_ref())
        .and_then(|schema| schema.open_api_v3_schema.as_ref())
        .with_context(|| format!("{}: no schema", crd.spec.names.kind))
}

fn kind(text: &mut String, crd: &CustomResourceDefinition) -> Result<()> {
    let root = schema(crd)?;
    writeln!(
        text,
        "\n## {}\n\n{}",
        crd.spec.names.kind,
        root.description.as_deref().unwrap_or_default()
    )?;
    let mut rules = Vec::new();
    collect_rules(&mut rules, "metadata", root);
    for part in ["spec", "status"] {
        let Some(schema) = root
            .properties
            .as_ref()
            .and_then(|properties| properties.get(part))
        else {
            continue;
        };
        writeln!(
            text,
            "\n### {} `{part}`\n\n{}\n",
            crd.spec.names.kind,
            schema.description.as_deref().unwrap_or_default()
        )?;
        text.push_str("| Field | Type | Bounds | Meaning |\n|---|---|---|---|\n");
        fields(text, part, schema)?;
        walk_rules(&mut rules, part, schema);
    }
    if !rules.is_empty() {
        writeln!(text, "\nRefused unless it holds:\n")?;
        for (path, message) in rules {
            writeln!(text, "- `{path}`: {message}")?;
        }
    }
    Ok(())
}

/// A row for each field below `path`, in the order of names, each followed by its own fields.
fn fields(text: &mut String, path: &str, schema: &JSONSchemaProps) -> Result<()> {
    let required = schema.required.as_deref().unwrap_or_default();
    for (name, field) in schema.properties.iter().flatten() {
        let path = format!("{path}.{name}");
        if path.ends_with(".conditions") {
            writeln!(
                text,
                "| `{path}` | conditions | – | {} |",
                cell(field.description.as_deref().unwrap_or("Standard conditions."))
            )?;
            continue;
        }
        writeln!(
            text,
            "| `{path}` | {} | {} | {} |",
            kind_of(field),
            cell(&bounds(field, required.contains(name))),
            cell(field.description.as_deref().unwrap_or_default())
        )?;
        fields(text, &path, field)?;
        if let Some(JSONSchemaPropsOrArray::Schema(item)) = &field.items {
            fields(text, &format!("{path}[]"), item)?;
        }
    }
    Ok(())
}

fn kind_of(field: &JSONSchemaProps) -> String {
    match (field.type_.as_deref(), &field.items, &field.additional_properties) {
        (Some("array"), Some(JSONSchemaPropsOrArray::Schema(item)), _) => {
            format!("list of {}", kind_of(item))
        }
        (Some("object"), _, Some(JSONSchemaPropsOrBool::Schema(value))) => {
            format!("map of {}", kind_of(value))
        }
        (Some(kind), ..) => kind.to_owned(),
        (None, ..) => "any".to_owned(),
    }
}

fn bounds(field: &JSONSchemaProps, required: bool) -> String {
    let mut bounds = Vec::new();
    if required {
        bounds.push("required".to_owned());
    }
    if let Some(default) = &field.default {
        bounds.push(format!("default `{}`", default.0));
    }
    if let Some(choices) = &field.enum_ {
        let choices: Vec<_> = choices
            .iter()
            .filter(|choice| !choice.0.is_null())
            .map(|choice| {
                format!(
                    "`{}`",
                    choice
                        .0
                        .as_str()
                        .map_or_else(|| choice.0.to_string(), str::to_owned)
                )
            })
            .collect();
        bounds.push(choices.join(", "));
    }
    match (field.minimum, field.maximum) {
        (Some(from), Some(to)) => bounds.push(format!("{from} to {to}")),
        (Some(from), None) => bounds.push(format!("at least {from}")),
        (None, Some(to)) => bounds.push(format!("at most {to}")),
        (None, None) => {}
    }
    match (field.min_length, field.max_length) {
        (Some(from), Some(to)) => bounds.push(format!("{from} to {to} characters")),
        (None, Some(to)) => bounds.push(format!("at most {to} characters")),
        (Some(from), None) => bounds.push(format!("at least {from} characters")),
        (None, None) => {}
    }
    match (field.min_items, field.max_items) {
        (Some(from), Some(to)) => bounds.push(format!("{from} to {to} items")),
        (None, Some(to)) => bounds.push(format!("at most {to} items")),
        (Some(from), None) => bounds.push(format!("at least {from} items")),
        (None, None) => {}
    }
    if let Some(most) = field.max_properties {
        bounds.push(format!("at most {most} entries"));
    }
    let item = match &field.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => item.pattern.as_ref(),
        _ => None,
    };
    if let Some(pattern) = field.pattern.as_ref().or(item) {
        bounds.push(format!("`{pattern}`"));
    }
    bounds.join("; ")
}

fn walk_rules(rules: &mut Vec<(String, String)>, path: &str, schema: &JSONSchemaProps) {
    collect_rules(rules, path, schema);
    for (name, field) in schema.properties.iter().flatten() {
        walk_rules(rules, &format!("{path}.{name}"), field);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
        walk_rules(rules, &format!("{path}[]"), item);
    }
}

fn collect_rules(rules: &mut Vec<(String, String)>, path: &str, schema: &JSONSchemaProps) {
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        let text = rule.message.clone().unwrap_or_else(|| format!("`{}`", rule.rule));
        rules.push((path.to_owned(), text));
    }
}
