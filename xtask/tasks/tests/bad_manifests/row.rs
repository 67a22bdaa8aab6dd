//! One bad manifest: a good one, what is done to it, and the field that the refusal must name.

use serde_json::Value;

/// One bad manifest, or one bad change.
pub(crate) struct Row {
    /// What is wrong, for a person.
    pub(crate) what: &'static str,
    /// What it would be without the fault.
    pub(crate) good: Value,
    /// JSON pointers with what is put there, or nothing to take it away.
    edits: Vec<(&'static str, Option<Value>)>,
    /// Path of the field, as messages write it: `spec.workload.session.sshKeys[0]`.
    pub(crate) field: String,
}

/// `value` put at `pointer`, which is the field to be named.
pub(crate) fn with(what: &'static str, good: Value, pointer: &'static str, value: impl Into<Value>) -> Row {
    row(what, good, pointer, Some(value.into()))
}

/// What is at `pointer` taken away.
pub(crate) fn without(what: &'static str, good: Value, pointer: &'static str) -> Row {
    row(what, good, pointer, None)
}

fn row(what: &'static str, good: Value, pointer: &'static str, value: Option<Value>) -> Row {
    let mut field = String::new();
    for part in pointer.split('/').skip(1) {
        field += &match part.parse::<usize>() {
            Ok(index) => format!("[{index}]"),
            Err(_) if field.is_empty() => part.to_owned(),
            Err(_) => format!(".{part}"),
        };
    }
    Row {
        what,
        good,
        edits: vec![(pointer, value)],
        field,
    }
}

impl Row {
    /// Where the refusal is about a field above the one that is edited.
    pub(crate) fn named(mut self, field: &str) -> Self {
        self.field = field.into();
        self
    }

    /// And this put there too.
    pub(crate) fn and(mut self, pointer: &'static str, value: impl Into<Value>) -> Self {
        self.edits.push((pointer, Some(value.into())));
        self
    }

    /// And this taken away too.
    pub(crate) fn nor(mut self, pointer: &'static str) -> Self {
        self.edits.push((pointer, None));
        self
    }

    /// Whether an edit is at or below `pointer`.
    pub(crate) fn touches(&self, pointer: &str) -> bool {
        self.edits.iter().any(|(at, _)| at.starts_with(pointer))
    }

    /// The manifest with its fault.
    pub(crate) fn manifest(&self) -> Value {
        self.edited(self.good.clone())
    }

    /// The same edits on the object as it is stored.
    pub(crate) fn edited(&self, mut object: Value) -> Value {
        for (pointer, value) in &self.edits {
            edit(&mut object, pointer, value.clone());
        }
        object
    }
}

/// Objects on the way are made; a list grows by one at its end.
fn edit(object: &mut Value, pointer: &str, value: Option<Value>) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let mut at = object;
    for part in parent.split('/').skip(1) {
        at = match at {
            Value::Array(items) => &mut items[part.parse::<usize>().unwrap()],
            other => &mut other[part],
        };
    }
    match (at, value) {
        (Value::Array(items), Some(value)) => match last.parse::<usize>().unwrap() {
            index if index == items.len() => items.push(value),
            index => items[index] = value,
        },
        (Value::Array(items), None) => drop(items.remove(last.parse().unwrap())),
        (at, Some(value)) => at[last] = value,
        (at, None) => {
            let fields = at
                .as_object_mut()
                .unwrap_or_else(|| panic!("{pointer}: no object"));
            fields
                .remove(last)
                .unwrap_or_else(|| panic!("{pointer}: is not there"));
        }
    }
}
