//! The CRDs as templates of the chart: kept when the release is uninstalled, upgraded with it.

use std::fs;

use anyhow::{Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::Generated;

const FOLDER: &str = "charts/leasehold/templates/crds";

pub(super) fn templates() -> Result<Vec<Generated>> {
    leasehold_crds::all().into_iter().map(template).collect()
}

fn template(mut crd: CustomResourceDefinition) -> Result<Generated> {
    // Uninstalling the operator must not delete what people own.
    crd.metadata
        .annotations
        .get_or_insert_default()
        .insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    crd.metadata
        .labels
        .get_or_insert_default()
        .insert("app.kubernetes.io/part-of".to_owned(), "leasehold".to_owned());
    let yaml = serde_norway::to_string(&crd)?;
    ensure!(
        !yaml.contains("{{"),
        "{}: Helm would take a text with two opening braces for a template",
        crd.spec.names.plural
    );
    Ok(Generated {
        path: format!("{FOLDER}/{}.yaml", crd.spec.names.plural),
        text: format!(
            "{{{{- /* Written by `cargo xtask codegen` from crds/. */}}}}\n{{{{- if .Values.crds.install }}}}\n{yaml}{{{{- end }}}}\n"
        ),
    })
}

/// Templates of kinds that are no more.
pub(super) fn leftovers(generated: &[Generated]) -> Result<Vec<String>> {
    let mut leftovers = Vec::new();
    for entry in fs::read_dir(leasehold_testtools::root().join(FOLDER))? {
        let path = format!("{FOLDER}/{}", entry?.file_name().to_string_lossy());
        if !generated.iter().any(|file| file.path == path) {
            leftovers.push(format!("{path}: of no kind; delete it"));
        }
    }
    Ok(leftovers)
}
