//! What a manifest file holds: objects that are ours, objects that are not, and what cannot be read. Pure: bytes in,
//! [`Content`] out.
//!
//! A kind is group and name: Service and Node of the core group and EndpointSlice of discovery.k8s.io are ours, whatever
//! their version. A file holds documents of YAML or JSON, and a document an object or a list of objects. What is not ours
//! is not looked into, so that its contents cannot be wrong.

mod yaml;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::value::RawValue;
use service_model::{Change, Event, Kind, ObjectName, Rejection};
use tracing::debug;

use crate::decode;

/// How deep lists may be in lists. Each level is read again and takes its part of the stack; real ones have two at most.
const DEPTH: usize = 8;

/// Which object.
pub(crate) type Object = (Kind, ObjectName);

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// Objects that are ours, in the file's order: applied, or unreadable.
    pub(crate) objects: Vec<(Object, Event)>,
    /// What cannot be read, and has no object's name.
    pub(crate) faults: Vec<String>,
    pub(crate) passed_over: PassedOver,
}

/// What is not ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PassedOver {
    /// Objects of other kinds, by kind and group.
    pub(crate) kinds: BTreeMap<String, usize>,
    /// Documents and items without a kind: values of a chart, a kustomization, anything.
    pub(crate) without_kind: usize,
}

impl PassedOver {
    pub(crate) fn add(&mut self, other: &Self) {
        for (kind, count) in &other.kinds {
            *self.kinds.entry(kind.clone()).or_default() += count;
        }
        self.without_kind += other.without_kind;
    }
}

impl fmt::Display for PassedOver {
    /// `3 Deployment.apps, 1 Secret`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<_> = self
            .kinds
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        f.write_str(&kinds.join(", "))
    }
}

/// Reads the bytes of a file. An empty file has no objects.
pub(crate) fn content(bytes: &[u8]) -> Content {
    let (text, encoding) = text(bytes);
    let mut reader = Reader {
        content: Content::default(),
        encoding,
        place: String::new(),
    };
    let documents = documents(&text);
    for (number, document) in documents.iter().enumerate() {
        if documents.len() > 1 {
            reader.place = format!("document {} (line {}): ", number + 1, document.line);
        }
        reader.document(document.text);
    }
    reader.content
}

/// What kind of text the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Unicode,
    /// Not UTF-8, and not UTF-16 with a byte order mark either.
    Other,
}

/// UTF-8, or what a byte order mark says, as the YAML parsers of Kubernetes read it.
fn text(bytes: &[u8]) -> (Cow<'_, str>, Encoding) {
    let utf_16 = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let (units, odd) = rest.as_chunks::<2>();
        let text: Result<String, _> = char::decode_utf16(units.iter().copied().map(unit)).collect();
        text.ok().filter(|_| odd.is_empty())
    };
    let marked = match bytes {
        [0xff, 0xfe, rest @ ..] => utf_16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf_16(rest, u16::from_be_bytes),
        _ => None,
    };
    match (marked, String::from_utf8_lossy(bytes)) {
        (Some(text), _) => (text.into(), Encoding::Unicode),
        (None, text @ Cow::Borrowed(_)) => (text, Encoding::Unicode),
        (None, text) => (text, Encoding::Other),
    }
}

/// A document, without the line that begins it, and the number of its first line, from 1.
#[derive(Debug, PartialEq, Eq)]
struct Document<'a> {
    line: usize,
    text: &'a str,
}

/// Cuts a text at the lines that begin with `---`: YAML allows them nowhere else (1.2.2, 9.1.2). Documents without
/// content are left out.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut cuts = vec![(1, 0, 0)];
    let mut at = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            cuts.push((number + 1, at, at + 3));
        }
        at += line.len();
    }
    let ends = cuts.iter().skip(1).map(|(_, marker, _)| *marker).chain([text.len()]);
    let all = cuts.iter().zip(ends).filter_map(|((line, _, begin), end)| {
        let text = text.get(*begin..end)?.trim_start_matches('\u{feff}');
        Some(Document { line: *line, text })
    });
    let has_content = |document: &Document<'_>| {
        let lines = document.text.lines().map(str::trim);
        lines
            .into_iter()
            .any(|line| !line.is_empty() && line != "..." && !line.starts_with(['#', '%']))
    };
    all.filter(has_content).collect()
}

/// What tells whose an object is. Values of any shape: nothing of what is not ours can be wrong.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    #[serde(borrow)]
    api_version: Option<&'a RawValue>,
    #[serde(borrow)]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    items: Option<&'a RawValue>,
}

/// `apiVersion` and `kind`.
#[derive(Clone, Copy)]
struct GroupKind<'a> {
    api_version: &'a str,
    kind: &'a str,
}

impl<'a> GroupKind<'a> {
    fn group(self) -> &'a str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    fn ours(self) -> Option<Kind> {
        match (self.group(), self.kind) {
            ("", "Service") => Some(Kind::Service),
            ("", "Node") => Some(Kind::Node),
            ("discovery.k8s.io", "EndpointSlice") => Some(Kind::EndpointSlice),
            _ => None,
        }
    }

    /// The kind of a list's items: none for `List`, whose items say it themselves.
    fn items(self) -> Option<Self> {
        let kind = self.kind.strip_suffix("List")?;
        Some(Self { kind, ..self })
    }

    /// As `kubectl` names it: `Service.serving.knative.dev`.
    fn name(self) -> String {
        match self.group() {
            "" => self.kind.to_owned(),
            group => format!("{}.{group}", self.kind),
        }
    }
}

struct Reader {
    content: Content,
    encoding: Encoding,
    /// Where in the file, as the beginning of a sentence.
    place: String,
}

impl Reader {
    /// A document of YAML, or what begins with a brace: a row of JSON objects.
    fn document(&mut self, text: &str) {
        let mut not_json = None;
        if text.trim_start().starts_with('{') {
            let mut first = true;
            for object in serde_json::Deserializer::from_str(text).into_iter::<&RawValue>() {
                match object {
                    Ok(object) => self.object(object, None, 0),
                    Err(error) if first => not_json = Some(error.to_string()),
                    Err(error) => self.fault(&error.to_string()),
                }
                first = false;
            }
            if not_json.is_none() {
                return;
            }
        }
        match yaml::to_json(text) {
            Ok(object) => self.object(&object, None, 0),
            Err(not_yaml) => match foreign(text) {
                Some(kind) => self.pass_over(kind),
                None => self.fault(&not_json.unwrap_or(not_yaml)),
            },
        }
    }

    /// An object, or the items of a list, within so many lists. `of` is the kind that a list says of its items.
    fn object(&mut self, object: &RawValue, of: Option<GroupKind<'_>>, depth: usize) {
        let text = object.get();
        if text == "null" {
            return;
        }
        let head: Head<'_> = match serde_json::from_str(text) {
            Ok(head) => head,
            // One of the three fields is there twice.
            Err(error) if text.starts_with('{') => return self.fault(&error.to_string()),
            Err(_) => return self.content.passed_over.without_kind += 1,
        };
        let (api_version, kind) = (string(head.api_version), string(head.kind));
        let mut this = GroupKind {
            api_version: &api_version,
            kind: &kind,
        };
        if let (Some(of), "") = (of, this.kind) {
            this = of;
        }
        if this.kind.is_empty() {
            self.content.passed_over.without_kind += 1;
            return;
        }
        if let Some(kind) = this.ours() {
            return self.ours(kind, this.api_version, object);
        }
        let items = head
            .items
            .and_then(|items| serde_json::from_str::<Vec<&RawValue>>(items.get()).ok());
        let of = this.items().filter(|of| of.kind.is_empty() || of.ours().is_some());
        match (of, items) {
            (Some(_), Some(_)) if depth == DEPTH => self.fault(&format!("lists in lists, more than {DEPTH} deep")),
            (Some(of), Some(items)) => {
                let of = (!of.kind.is_empty()).then_some(of);
                items.into_iter().for_each(|item| self.object(item, of, depth + 1));
            }
            _ => self.pass_over(this.name()),
        }
    }

    fn ours(&mut self, kind: Kind, api_version: &str, object: &RawValue) {
        let name = match decode::identity(kind, object) {
            Ok(identity) if !identity.name.name().is_empty() => identity.name,
            Ok(_) => return self.fault(&format!("a {kind} without a name")),
            Err(error) => return self.fault(&format!("a {kind} whose name cannot be read: {error}")),
        };
        let unreadable = |field: &str, reason: String| Rejection {
            kind,
            object: name.clone(),
            field: field.into(),
            reason: reason.into(),
        };
        let version = api_version.rsplit('/').next().unwrap_or_default();
        let event = if version != "v1" {
            let want = match kind {
                Kind::Service | Kind::Node => "v1",
                Kind::EndpointSlice => "discovery.k8s.io/v1",
            };
            Event::Unreadable(unreadable(
                "apiVersion",
                format!("{api_version:?} is not read, want {want}"),
            ))
        } else if self.encoding == Encoding::Other {
            Event::Unreadable(unreadable("", "the text is not UTF-8".to_owned()))
        } else {
            decode::object(kind, object).map_or_else(
                |_| Event::Unreadable(decode::why_not(kind, name.clone(), object)),
                |decoded| decoded.event,
            )
        };
        if let Event::Service(Change::Applied(service)) = &event
            && service.cluster_ips.is_empty()
        {
            debug!(object = %service.name, "no cluster IP: nothing is programmed");
        }
        self.content.objects.push(((kind, name), event));
    }

    fn pass_over(&mut self, kind: String) {
        *self.content.passed_over.kinds.entry(kind).or_default() += 1;
    }

    fn fault(&mut self, reason: &str) {
        // Parsers draw pictures; the log has lines.
        let reason: Vec<_> = reason.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        self.content.faults.push(format!("{}{}", self.place, reason.join(" ")));
    }
}

/// A JSON string's text; empty for anything else.
fn string(value: Option<&RawValue>) -> String {
    value
        .and_then(|value| serde_json::from_str(value.get()).ok())
        .unwrap_or_default()
}

/// The kind of a text that is not YAML, such as a chart's template, where its first level tells plainly that it is not
/// ours.
fn foreign(text: &str) -> Option<String> {
    let field = |name: &str| {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
            .trim()
            .trim_matches(['"', '\'']);
        let plain = |c: char| c.is_ascii_alphanumeric() || "./-".contains(c);
        (!value.is_empty() && value.chars().all(plain)).then_some(value)
    };
    let this = GroupKind {
        api_version: field("apiVersion")?,
        kind: field("kind")?,
    };
    (this.ours().is_none() && this.items().is_none()).then(|| this.name())
}

#[cfg(test)]
mod tests;
