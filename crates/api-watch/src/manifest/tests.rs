//! A file's text in, what it holds out, as text.

use proptest::prelude::*;

use super::*;

/// What a text holds: objects, then `!` with what cannot be read, `?` with faults, `-` with what is passed over.
fn holds(bytes: &[u8]) -> Vec<String> {
    let Content {
        objects,
        faults,
        passed_over,
    } = content(bytes);
    let objects = objects.into_iter().map(|((kind, name), event)| match event {
        Event::Unreadable(rejection) => format!("! {rejection}"),
        _ => format!("{kind} {name}"),
    });
    let kinds = (!passed_over.kinds.is_empty()).then(|| format!("- {passed_over}"));
    let without = (passed_over.without_kind > 0).then(|| format!("- {} without a kind", passed_over.without_kind));
    objects
        .chain(faults.into_iter().map(|fault| format!("? {fault}")))
        .chain(kinds)
        .chain(without)
        .collect()
}

#[track_caller]
fn check(text: &str, expect: &[&str]) {
    let found = holds(text.as_bytes());
    let as_expected = |(found, expect): (&String, &&str)| match expect.strip_suffix('…') {
        Some(beginning) => found.starts_with(beginning),
        None => found == expect,
    };
    assert!(
        found.len() == expect.len() && found.iter().zip(expect).all(as_expected),
        "{text}\nfound: {found:#?}\nexpected: {expect:#?}"
    );
}

const WEB: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n";
const WEB_JSON: &str =
    r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"clusterIP":"10.0.0.1"}}"#;
const KNATIVE: &str = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: hello}\n";

#[test]
fn a_kind_is_group_and_name() {
    check(WEB, &["Service default/web"]);
    check(KNATIVE, &["- 1 Service.serving.knative.dev"]);
    check(
        "apiVersion: longhorn.io/v1beta2\nkind: Node\nmetadata: {name: n1, namespace: longhorn-system}\n",
        &["- 1 Node.longhorn.io"],
    );
    check(
        "apiVersion: example.org/v1\nkind: EndpointSlice\nspec: .inf\n",
        &["- 1 EndpointSlice.example.org"],
    );
    check(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s}\naddressType: IPv4\n",
        &["EndpointSlice default/s"],
    );
}

#[test]
fn a_version_that_is_not_read_is_a_rejection_by_name() {
    check(
        "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: s, namespace: shop}\n",
        &["! EndpointSlice shop/s: apiVersion: \"discovery.k8s.io/v1beta1\" is not read, want discovery.k8s.io/v1"],
    );
    check(
        "kind: Service\nmetadata: {name: s}\n",
        &["! Service default/s: apiVersion: \"\" is not read, want v1"],
    );
}

#[test]
fn what_is_no_object_is_passed_over() {
    check("", &[]);
    check("# nothing\n---\n--- # nothing\n...\n---\nnull\n---\n~\n", &[]);
    check("replicaCount: 3\nimage: {tag: \"1.2\"}\n", &["- 1 without a kind"]);
    check("resources:\n- svc.yaml\n", &["- 1 without a kind"]);
    check("- a\n- b\n", &["- 1 without a kind"]);
    check("just words", &["- 1 without a kind"]);
    check("kind: DaemonSet\nimage: x\n", &["- 1 DaemonSet"]);
    check("kind: 3\n", &["- 1 without a kind"]);
    check("apiVersion: [1]\nkind: ConfigMap\n", &["- 1 ConfigMap"]);
    // A template: its first level says whose it is.
    check(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {{ .Release.Name }}\n{{- if x }}\n{{- end }}\n",
        &["- 1 Deployment.apps"],
    );
}

#[test]
fn what_is_not_ours_cannot_be_wrong() {
    let foreign = "apiVersion: example.org/v1\nkind: Limit\n";
    for odd in [
        "max: .inf\nmin: -.Inf\nnone: .nan\n",
        "many: 1e400\nmore: 123456789012345678901234567890123456789012345\n",
        "a: 1\na: 2\nspec: {x: 1, x: 2}\n",
        "1: one\ntrue: yes\nnull: no\n? [a, b]\n: pair\n1.5: x\n",
        "x: !Ref y\nz: !Sub [a, b]\nb: !!binary aGVsbG8=\nt: 2001-12-14t21:59:43.10-05:00\n",
        "base: &base {a: 1}\nderived: {<<: *base, b: 2}\n",
        "text: |\n  ---\n  kind: Service\n",
        "metadata: 7\nitems: {a: b}\n",
    ] {
        check(
            &format!("{foreign}{odd}---\n{WEB}"),
            &["Service default/web", "- 1 Limit.example.org"],
        );
    }
    let json = format!(r#"{{"apiVersion":"example.org/v1","kind":"Limit","max":1e999,"a":1,"a":2}}{WEB_JSON}"#);
    check(&json, &["Service default/web", "- 1 Limit.example.org"]);
}

#[test]
fn what_is_ours_and_cannot_be_read_is_a_rejection_of_that_field() {
    let with = |port: &str| WEB.replace("80", port);
    check(
        &format!("{}---\n{WEB}", with("\"80\"").replace("web", "quoted")),
        &[
            "! Service default/quoted: spec.ports[0].port: invalid type: string \"80\", expected i64",
            "Service default/web",
        ],
    );
    for (port, why) in [
        (".inf", "string \".inf\", expected i64"),
        ("1e400", "string…"),
        ("80.5", "floating point `80.5`, expected i64"),
        ("[80]", "sequence, expected i64"),
        ("123456789012345678901234567890", "…"),
    ] {
        let expect = format!("! Service default/web: spec.ports[0].port: invalid type: {why}");
        let expect = if why == "…" {
            "! Service default/web: spec.ports[0].port: …"
        } else {
            &expect
        };
        check(&with(port), &[expect]);
    }
    // A key twice in a mapping: which one is meant is unknown.
    check(
        &format!("{WEB}spec: {{}}\n"),
        &["! Service default/web: duplicate field `spec`"],
    );
    check(
        &WEB.replace("{port: 80}", "{port: 80, port: 81}"),
        &["! Service default/web: spec.ports[0]: duplicate field `port`"],
    );
    check(
        &WEB_JSON.replace("\"10.0.0.1\"", "10"),
        &["! Service default/web: spec.clusterIP: invalid type: integer `10`, expected a string"],
    );
    check(
        "apiVersion: v1\nkind: Node\nmetadata: {}\n",
        &["? a Node without a name"],
    );
    check(
        "apiVersion: v1\nkind: Service\n",
        &["? a Service whose name cannot be read: …"],
    );
    check(
        "apiVersion: v1\nkind: Service\nkind: Service\n",
        &["? duplicate field `kind`…"],
    );
}

/// Half a megabyte of them ended the process: each level takes its part of the stack.
#[test]
fn lists_may_be_in_lists_but_not_without_end() {
    let nested = |depth: usize, inner: &str| {
        let (before, after) = (r#"{"kind":"List","items":["#.repeat(depth), "]}".repeat(depth));
        format!("{before}{inner}{after}")
    };
    check(&nested(DEPTH, WEB_JSON), &["Service default/web"]);
    let fault = "? lists in lists, more than 8 deep";
    check(&nested(DEPTH + 1, WEB_JSON), &[fault]);
    assert_eq!(holds(nested(20_000, "").as_bytes()), [fault]);
    // Beside it everything is read.
    check(
        &format!("{}\n---\n{WEB}", nested(DEPTH + 1, "")),
        &[
            "Service default/web",
            "? document 1 (line 1): lists in lists, more than 8 deep",
        ],
    );
}

#[test]
fn lists_of_every_form() {
    let item = |text: &str| format!("- {}\n", text.trim_end().replace('\n', "\n  "));
    check(
        &format!(
            "apiVersion: v1\nkind: List\nitems:\n{}{}- null\n",
            item(WEB),
            item(KNATIVE)
        ),
        &["Service default/web", "- 1 Service.serving.knative.dev"],
    );
    // As the API server sends them: the items do not say their kind.
    let bare = r#"{"metadata":{"name":"a","namespace":"x"},"spec":{"clusterIP":"10.0.0.2"}}"#;
    check(
        &format!(r#"{{"kind":"ServiceList","apiVersion":"v1","metadata":{{}},"items":[{bare}, {WEB_JSON}]}}"#),
        &["Service x/a", "Service default/web"],
    );
    check(
        &format!("kind: NodeList\napiVersion: v1\nitems:\n- metadata: {{name: n1}}\n---\n{WEB}"),
        &["Node n1", "Service default/web"],
    );
    check(
        "kind: EndpointSliceList\napiVersion: discovery.k8s.io/v1beta1\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n",
        &[
            "! EndpointSlice default/a: apiVersion: …",
            "! EndpointSlice default/b: apiVersion: …",
        ],
    );
    // Lists of others, as in a dump of a cluster.
    check(
        r#"{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"p"}}]}
           {"kind":"ServiceList","apiVersion":"serving.knative.dev/v1","items":[{"kind":"Service","apiVersion":"v1"}]}"#,
        &["- 1 PodList, 1 ServiceList.serving.knative.dev"],
    );
    check("kind: List\napiVersion: v1\nitems: null\n", &["- 1 List"]);
    check("kind: ServiceList\napiVersion: v1\nitems: []\n", &[]);
    // One that cannot be read is one.
    check(
        r#"{"kind":"ServiceList","apiVersion":"v1","items":[{"metadata":{"name":"a"},"spec":7},{"metadata":{"name":"b"}}]}"#,
        &["! Service default/a: spec: …", "Service default/b"],
    );
}

#[test]
fn what_is_not_yaml_is_said_and_the_rest_is_read() {
    check(
        &format!("{WEB}---\nkind: [\n---\n{}", WEB.replace("web", "other")),
        &[
            "Service default/web",
            "Service default/other",
            "? document 2 (line 5): …",
        ],
    );
    check(
        &format!("{WEB_JSON}\n{{\"kind\""),
        &["Service default/web", "? EOF while parsing…"],
    );
    // Unknown, or ours, is never passed over.
    check("name: {{ .Values.name }}\n{{ end }}\n", &["? …"]);
    check(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {{ x }}-y\n  {{ end }}\n",
        &["? …"],
    );
    check("apiVersion: v1\nkind: List\nitems: [\n", &["? …"]);
    // Begins with a brace, and is YAML all the same.
    check("{apiVersion: v1, kind: Node, metadata: {name: n1}}\n", &["Node n1"]);
}

#[test]
fn byte_order_marks_and_encodings() {
    let web: &[&str] = &["Service default/web"];
    for text in [WEB, WEB_JSON] {
        check(&format!("\u{feff}{text}"), web);
        check(&format!("---\n\u{feff}{text}"), web);
        check(&text.replace('\n', "\r\n"), web);
        let marked = format!("\u{feff}{text}");
        let little: Vec<u8> = marked.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = marked.encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!(
            (holds(&little), holds(&big)),
            (vec![web[0].to_owned()], vec![web[0].to_owned()])
        );
    }
    // Latin-1: what is ours is not read, what is not ours does not matter.
    let mut latin = b"# caf\xe9\n".to_vec();
    latin.extend(WEB.as_bytes());
    assert_eq!(holds(&latin), ["! Service default/web: the text is not UTF-8"]);
    let mut latin = b"note: caf\xe9\n".to_vec();
    latin.extend(KNATIVE.as_bytes());
    assert_eq!(holds(&latin), ["- 1 Service.serving.knative.dev"]);
}

proptest! {
    /// Documents do not depend on their neighbors: what is read of a row is what is read of each.
    #[test]
    fn each_document_counts_alone(picks in prop::collection::vec(0..6_usize, 0..6)) {
        let all = [WEB, KNATIVE, "a: .inf\n", "kind: [\n", WEB_JSON, "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n"];
        let mut expect = Content::default();
        for pick in &picks {
            let alone = content(all[*pick].as_bytes());
            expect.objects.extend(alone.objects);
            expect.faults.extend(alone.faults);
            expect.passed_over.add(&alone.passed_over);
        }
        let text = picks.iter().fold(String::new(), |text, pick| format!("{text}---\n{}\n", all[*pick]));
        let found = content(text.as_bytes());
        prop_assert_eq!(found.objects, expect.objects);
        prop_assert_eq!(found.faults.len(), expect.faults.len());
        prop_assert_eq!(found.passed_over, expect.passed_over);
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[-a{}\\[\\]: \n\"'&*!|>%#~.]{0,60}") {
        content(&bytes);
        content(text.as_bytes());
    }
}
