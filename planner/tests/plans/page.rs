//! Writes a story for people: the plan of each step as text, with times, amounts and addresses that can be read.

use std::{collections::BTreeMap, fmt::Write as _};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use leasehold_crds::payment::money::{Rate, TokenAmount};
use serde::Serialize;
use serde_json::Value;

use crate::fixtures::{DECIMALS, START, at, names};

/// Fields that hold Unix seconds.
const TIMES: [&str; 17] = [
    "allocationGoneSince",
    "blockTime",
    "chainUnreadableSince",
    "deadline",
    "exhaustedAt",
    "faultSince",
    "lastAt",
    "notAfter",
    "notAfterMax",
    "openBy",
    "paidUntil",
    "readAt",
    "resultsUntil",
    "startBy",
    "startedAt",
    "stoppedAt",
    "validUntil",
];
/// Fields that hold base units of the token.
const AMOUNTS: [&str; 4] = ["deposit", "deposited", "total", "owed"];
/// Fields that hold a rate.
const RATES: [&str; 2] = ["rate", "ratePerSecond"];

/// The text of a story.
pub(crate) struct Page {
    text: String,
    steps: usize,
}

impl Page {
    /// Begins a story with a sentence about it.
    pub(crate) fn new(about: &str) -> Self {
        Self {
            text: format!("{about}\n"),
            steps: 0,
        }
    }

    /// Begins a step: what changed in the world before it.
    pub(crate) fn step(&mut self, what: &str, now: i64) {
        self.steps += 1;
        let line = format!("{}. [{}] {what}", self.steps, time(at(now)));
        write!(self.text, "\n{line}\n").unwrap();
    }

    /// Writes one line of a plan.
    pub(crate) fn line(&mut self, label: &str, text: impl AsRef<str>) {
        let text = readable(text.as_ref());
        writeln!(self.text, "   {label:<10} {text}").unwrap();
    }

    /// Writes an object as YAML below a line.
    pub(crate) fn yaml(&mut self, object: &impl Serialize) {
        let yaml = serde_norway::to_string(&without_repeated_labels(object)).unwrap();
        for line in yaml.lines() {
            let (key, value) = line.split_once(": ").unwrap_or((line, ""));
            let name = key.trim_start_matches([' ', '-']);
            let line = match humanize(name, value.trim_matches(['\'', '"'])) {
                Some(text) => format!("{key}: {text}"),
                None => line.to_owned(),
            };
            writeln!(self.text, "              {}", readable(&line)).unwrap();
        }
    }

    /// Writes the fields of an object that changed.
    pub(crate) fn changes(&mut self, label: &str, before: &impl Serialize, after: &impl Serialize) {
        let (before, after) = (fields(before), fields(after));
        for (path, value) in after
            .iter()
            .filter(|(path, value)| before.get(*path) != Some(value))
        {
            self.line(label, format!("{path}: {value}"));
        }
    }

    /// Writes how the phase and the conditions changed, and every other field of the status that changed.
    pub(crate) fn status<S: Serialize>(
        &mut self,
        (before, conditions_before): (&S, &[Condition]),
        (after, conditions): (&S, &[Condition]),
    ) {
        let (before, after) = (fields(before), fields(after));
        let phase = |fields: &BTreeMap<String, String>| fields.get("phase").cloned().unwrap_or_default();
        if phase(&before) == phase(&after) {
            self.line("phase", phase(&after));
        } else {
            self.line("phase", format!("{} -> {}", phase(&before), phase(&after)));
        }
        for condition in conditions {
            let same = |c: &&Condition| {
                (&c.type_, &c.status, &c.reason, &c.message)
                    == (
                        &condition.type_,
                        &condition.status,
                        &condition.reason,
                        &condition.message,
                    )
            };
            if conditions_before.iter().find(same).is_none() {
                let mut text = format!("{}={} {}", condition.type_, condition.status, condition.reason);
                if !condition.message.is_empty() {
                    write!(text, ": {}", condition.message).unwrap();
                }
                self.line("condition", text);
            }
        }
        let gone = |c: &&Condition| conditions.iter().all(|other| other.type_ != c.type_);
        for condition in conditions_before.iter().filter(gone) {
            self.line("condition", format!("{} removed", condition.type_));
        }
        self.intent(&before, &after);
        let is_shown = |path: &str| path != "phase" && !path.starts_with("intent");
        for (path, value) in after.iter().filter(|(path, _)| is_shown(path)) {
            if before.get(path) != Some(value) {
                self.line("status", format!("{path}: {value}"));
            }
        }
        let is_gone = |path: &str| !after.keys().any(|other| other == path || is_below(other, path));
        let mut named = String::new();
        for path in before
            .keys()
            .filter(|path| is_shown(path) && !after.contains_key(*path))
        {
            // A field that is gone is named once, and not with everything below it.
            let ends = path
                .char_indices()
                .filter(|(_, c)| matches!(c, '.' | '['))
                .map(|(i, _)| i);
            let mut above = ends.chain([path.len()]).map(|end| &path[..end]);
            let gone = above.find(|path| is_gone(path)).unwrap_or(path);
            if gone != named {
                self.line("status", format!("{gone}: removed"));
                gone.clone_into(&mut named);
            }
        }
    }

    fn intent(&mut self, before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
        let intent = |fields: &BTreeMap<String, String>| {
            let action = fields.get("intent.action")?;
            let total = fields
                .get("intent.total")
                .map(|total| format!(", {total} in all"));
            Some(format!("{action}{}", total.unwrap_or_default()))
        };
        match (intent(before), intent(after)) {
            (before, Some(after)) if before.as_ref() == Some(&after) => {
                self.line("intent", format!("{after} (stored before)"));
            }
            (_, Some(after)) => self.line("intent", format!("{after} (new)")),
            (Some(before), None) => self.line("intent", format!("removed; it was {before}")),
            (None, None) => {}
        }
    }

    /// Writes when the object is reconciled again.
    pub(crate) fn wake(&mut self, wake: Timestamp, now: i64) {
        self.line("wake", format!("+{}s", wake.as_second() - now));
    }

    /// The whole text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// Whether a path is below another.
fn is_below(path: &str, above: &str) -> bool {
    path.strip_prefix(above)
        .is_some_and(|rest| rest.starts_with(['.', '[']))
}

/// An amount of base units in whole tokens.
pub(crate) fn tokens(amount: TokenAmount) -> String {
    format!("{} USDC", amount.to_tokens(DECIMALS))
}

/// A time; on the day of the story without its date.
pub(crate) fn time(time: Timestamp) -> String {
    without_date(&time.to_string())
}

fn without_date(text: &str) -> String {
    let today = at(START).to_string();
    let date = today.split_inclusive('T').next().unwrap_or_default();
    let mut rest = text;
    let mut short = String::new();
    while let Some((before, after)) = rest.split_once(date) {
        short.push_str(before);
        let end = after.find('Z').map_or(0, |end| end + 1);
        short.push_str(after[..end].trim_end_matches('Z'));
        rest = &after[end..];
    }
    short + rest
}

/// Every field of an object but its conditions, by its path.
fn fields(object: &impl Serialize) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    flatten("", &serde_json::to_value(object).unwrap(), &mut fields);
    fields
}

fn flatten(path: &str, value: &Value, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object.iter().filter(|(key, _)| *key != "conditions") {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                flatten(&path, value, fields);
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                flatten(&format!("{path}[{i}]"), value, fields);
            }
        }
        scalar => {
            let text = scalar.as_str().map_or_else(|| scalar.to_string(), str::to_owned);
            let name = path.rsplit('.').next().unwrap_or_default();
            // The amounts in a lease's summary are whole tokens already.
            let summary = path.starts_with("money.") && name != "ratePerSecond";
            let human = humanize(name, &text).filter(|_| !summary);
            fields.insert(path.to_owned(), human.unwrap_or(text));
        }
    }
}

/// A number that a person cannot read, in a form that can be read.
fn humanize(name: &str, value: &str) -> Option<String> {
    if TIMES.contains(&name) {
        let seconds: i64 = value.parse().ok().filter(|seconds| *seconds > 0)?;
        return Some(time(at(seconds)));
    }
    if AMOUNTS.contains(&name) {
        return TokenAmount::parse(value).ok().map(tokens);
    }
    if RATES.contains(&name) {
        let rate = Rate::parse(value).ok()?;
        return Some(format!("{} USDC/h", rate.tokens_per_hour_nearest(DECIMALS)));
    }
    None
}

/// Addresses by name, hashes and names of leases shortened, times without the date.
fn readable(text: &str) -> String {
    let mut text = without_date(text);
    for (address, name) in names() {
        text = text.replace(&address.to_string(), name);
    }
    let text = shorten(&text, "0x", 32, |c| c.is_ascii_hexdigit());
    shorten(&text, "lease-", 26, |c| {
        c.is_ascii_lowercase() || c.is_ascii_digit()
    })
}

/// Shortens each word of at least so many characters behind a prefix.
fn shorten(text: &str, prefix: &str, least: usize, of: impl Fn(char) -> bool) -> String {
    let mut parts = text.split(prefix);
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let length = part.find(|c| !of(c)).unwrap_or(part.len());
        short.push_str(prefix);
        if length >= least {
            short.push_str(&part[..6]);
            short.push('…');
            short.push_str(&part[length..]);
        } else {
            short.push_str(part);
        }
    }
    short
}

/// Drops labels that equal those of the object's namespace, which is the first of the objects.
fn without_repeated_labels(object: &impl Serialize) -> serde_norway::Value {
    let mut value = serde_norway::to_value(object).unwrap();
    let common = value["namespace"]["metadata"]["labels"].clone();
    if let (Some(objects), Some(common)) = (value.as_mapping_mut(), common.as_mapping()) {
        for (_, object) in objects.iter_mut().skip(1) {
            drop_labels(object, common);
        }
    }
    value
}

fn drop_labels(value: &mut serde_norway::Value, common: &serde_norway::Mapping) {
    match value {
        serde_norway::Value::Sequence(list) => list.iter_mut().for_each(|v| drop_labels(v, common)),
        serde_norway::Value::Mapping(map) => {
            if let Some(serde_norway::Value::Mapping(labels)) = map.get_mut("labels") {
                labels.retain(|key, value| common.get(key) != Some(value));
                if labels.is_empty() {
                    map.remove("labels");
                }
            }
            map.iter_mut().for_each(|(_, value)| drop_labels(value, common));
        }
        _ => {}
    }
}
