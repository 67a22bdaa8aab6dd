//! How GitOps controllers evaluate Leasehold's conditions: Argo CD's health scripts in Lua, Flux's expressions in
//! CEL, both as in examples/06-gitops.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use cel::{Context, Program, Value as Answer};
use mlua::{Lua, LuaOptions, LuaSerdeExt as _, StdLib};
use serde_json::Value;

/// The folder of the example.
#[must_use]
pub fn folder() -> PathBuf {
    leasehold_testtools::root().join("examples/06-gitops")
}

/// Runs a health script on an object. Returns status and message.
///
/// # Errors
///
/// If the script fails, or returns a status that Argo CD does not have.
pub fn argo(script: &str, object: &Value) -> Result<(String, String)> {
    // Argo CD gives a script the base library, tables, and two functions of os that these scripts do not use.
    let lua = Lua::new_with(StdLib::TABLE, LuaOptions::default())?;
    // Absent, as in Argo CD: null must become nil.
    let options = mlua::serde::ser::Options::new()
        .serialize_none_to_null(false)
        .serialize_unit_to_null(false);
    lua.globals().set("obj", lua.to_value_with(object, options)?)?;
    let health: mlua::Table = lua.load(script).eval()?;
    let status: String = health.get("status")?;
    let message: Option<String> = health.get("message")?;
    match status.as_str() {
        "Healthy" | "Suspended" | "Progressing" | "Missing" | "Degraded" | "Unknown" => {
            Ok((status, message.unwrap_or_default()))
        }
        other => bail!("Argo CD has no status {other:?}"),
    }
}

/// Result of Flux's expressions for an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// The object is ready.
    Current,
    /// The object failed permanently.
    Failed,
    /// Neither of both yet.
    InProgress,
}

/// `spec.healthCheckExprs` of a Kustomization, for one kind.
pub struct Expressions {
    current: Program,
    failed: Program,
}

impl Expressions {
    /// The expressions for a kind, from the example's Kustomization.
    ///
    /// # Errors
    ///
    /// If there are none, or they do not compile.
    pub fn of(kind: &str) -> Result<Self> {
        let text = std::fs::read_to_string(folder().join("flux/kustomization.yaml"))?;
        for document in text.split("\n---") {
            let object: Value = serde_norway::from_str(document)?;
            let of_kind = |e: &&Value| e["kind"] == kind;
            if let Some(found) = object["spec"]["healthCheckExprs"]
                .as_array()
                .and_then(|a| a.iter().find(of_kind))
            {
                let program = |name: &str| {
                    let source = found[name]
                        .as_str()
                        .with_context(|| format!("{kind} has no {name}"))?;
                    Program::compile(source).map_err(|e| anyhow::anyhow!("{kind}, {name}: {e}"))
                };
                return Ok(Self {
                    current: program("current")?,
                    failed: program("failed")?,
                });
            }
        }
        bail!("no expressions for {kind}")
    }

    /// Evaluates the expressions. As in Flux, an expression that cannot be evaluated counts as false.
    ///
    /// # Errors
    ///
    /// If both are true, as the outcome would depend on their order.
    pub fn waits(&self, object: &Value) -> Result<Waits> {
        match (holds(&self.current, object), holds(&self.failed, object)) {
            (true, true) => bail!("current and failed at the same time"),
            (true, false) => Ok(Waits::Current),
            (false, true) => Ok(Waits::Failed),
            (false, false) => Ok(Waits::InProgress),
        }
    }
}

fn holds(program: &Program, object: &Value) -> bool {
    let mut context = Context::default();
    for field in ["apiVersion", "kind", "metadata", "spec", "status"] {
        if let Some(value) = object.get(field)
            && context.add_variable(field, value).is_err()
        {
            return false;
        }
    }
    matches!(program.execute(&context), Ok(Answer::Bool(true)))
}
