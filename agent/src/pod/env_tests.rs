use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

struct Fixed;

impl Objects for Fixed {
    fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>> {
        (name == "cm").then(|| {
            Arc::new(
                serde_saphyr::from_str("data: { a: one, B_b: two, 'x=y': bad }")
                    .expect("a ConfigMap"),
            )
        })
    }

    fn secret(&self, name: &str) -> Option<Arc<Secret>> {
        (name == "s").then(|| {
            Arc::new(
                serde_saphyr::from_str("data: { key: c2VjcmV0, raw: /w== }").expect("a Secret"),
            )
        })
    }
}

fn of(container: &str) -> Result<Vec<String>, EnvError> {
    let container: Container = serde_saphyr::from_str(container).expect("a container");
    let metadata = ObjectMeta {
        name: Some("web".to_owned()),
        namespace: Some("ns".to_owned()),
        uid: Some("u-1".to_owned()),
        labels: Some(BTreeMap::from([(
            "app.kubernetes.io/name".to_owned(),
            "x".to_owned(),
        )])),
        ..ObjectMeta::default()
    };
    let pod: PodSpec = serde_saphyr::from_str(
        "initContainers: [{ name: first, resources: { limits: { memory: 7Mi } } }]\n\
         containers: [{ name: other, resources: { limits: { memory: 5Mi } } }]",
    )
    .expect("a spec");
    let facts = PodFacts {
        metadata: &metadata,
        spec: Some(&pod),
        service_account: "default",
        node_name: "node",
        host_ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
        pod_ips: &[IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2))],
        capacity: Capacity {
            cpu_millis: 3500,
            memory_bytes: 1 << 30,
            swap: false,
        },
    };
    variables(&container, &facts, &Fixed).map(|variables| variables.to_strings())
}

#[test]
fn references_see_what_is_above() {
    let env = of(
        "name: c\nenv:\n- { name: A, value: '1' }\n- { name: B, value: '$(A)$(C)$$(A)' }\n- { name: C, value: x }\n- { name: A, value: '$(A)2' }\n",
    );
    assert_eq!(env.expect("env"), ["A=12", "B=1$(C)$(A)", "C=x"]);
}

#[test]
fn env_from_takes_a_prefix_and_leaves_out_bad_names() {
    let env = of(
        "name: c\nenvFrom:\n- { prefix: P_, configMapRef: { name: cm } }\n- { configMapRef: { name: no, optional: true } }\nenv: [{ name: X, value: $(P_a) }]\n",
    );
    assert_eq!(env.expect("env"), ["P_B_b=two", "P_a=one", "X=one"]);
}

#[test]
fn missing_objects_and_keys() {
    let one = |source: &str| {
        of(&format!(
            "name: c\nenv: [{{ name: X, valueFrom: {{ {source} }} }}]"
        ))
    };
    assert_eq!(
        one("configMapKeyRef: { name: cm, key: a }").expect("env"),
        ["X=one"]
    );
    assert_eq!(
        one("configMapKeyRef: { name: no, key: a }"),
        Err(EnvError::NoConfigMap("no".to_owned()))
    );
    assert!(matches!(
        one("configMapKeyRef: { name: cm, key: z }"),
        Err(EnvError::NoConfigMapKey { .. })
    ));
    assert_eq!(
        one("configMapKeyRef: { name: cm, key: z, optional: true }").expect("env"),
        [""; 0]
    );
    assert_eq!(
        one("secretKeyRef: { name: s, key: key }").expect("env"),
        ["X=secret"]
    );
    assert!(matches!(
        one("secretKeyRef: { name: s, key: raw }"),
        Err(EnvError::NotText { .. })
    ));
    assert!(matches!(
        one("secretKeyRef: { name: s, key: z }"),
        Err(EnvError::NoSecretKey { .. })
    ));
    assert_eq!(
        one("secretKeyRef: { name: no, key: z }"),
        Err(EnvError::NoSecret("no".to_owned()))
    );
    assert_eq!(
        of("name: c\nenvFrom: [{ secretRef: { name: no } }]"),
        Err(EnvError::NoSecret("no".to_owned()))
    );
}

#[test]
fn downward_fields() {
    let field = |path: &str| {
        of(&format!(
            "name: c\nenv: [{{ name: X, valueFrom: {{ fieldRef: {{ fieldPath: \"{path}\" }} }} }}]"
        ))
        .map(|env| env[0].clone())
    };
    for (path, expected) in [
        ("metadata.name", "X=web"),
        ("metadata.namespace", "X=ns"),
        ("metadata.uid", "X=u-1"),
        ("metadata.labels['app.kubernetes.io/name']", "X=x"),
        ("metadata.annotations['none']", "X="),
        ("spec.nodeName", "X=node"),
        ("spec.serviceAccountName", "X=default"),
        ("status.hostIP", "X=192.0.2.1"),
        ("status.podIP", "X=10.0.0.2"),
        ("status.podIPs", "X=10.0.0.2"),
    ] {
        assert_eq!(field(path).as_deref(), Ok(expected), "{path}");
    }
    assert!(field("spec.hostname").is_err());
}

#[test]
fn downward_resources_fall_back_to_the_machine() {
    let resource = |selector: &str, resources: &str| {
        of(&format!(
            "name: c\nresources: {resources}\nenv: [{{ name: X, valueFrom: {{ resourceFieldRef: {{ {selector} }} }} }}]"
        ))
        .map(|env| env[0].clone())
    };
    assert_eq!(resource("resource: limits.cpu", "{}").as_deref(), Ok("X=4"));
    assert_eq!(
        resource("resource: limits.cpu, divisor: 1m", "{}").as_deref(),
        Ok("X=3500")
    );
    assert_eq!(
        resource(
            "resource: limits.memory, divisor: 1Mi",
            "{ limits: { memory: 100Mi } }"
        )
        .as_deref(),
        Ok("X=100")
    );
    assert_eq!(
        resource("resource: requests.memory", "{}").as_deref(),
        Ok("X=0")
    );
    assert_eq!(
        resource("resource: requests.cpu", "{ requests: { cpu: 250m } }").as_deref(),
        Ok("X=1")
    );
    assert!(resource("resource: limits.hugepages-2Mi", "{}").is_err());
    // Of another container.
    for (name, expected) in [("other", "X=5"), ("first", "X=7")] {
        let selector = format!("containerName: {name}, resource: limits.memory, divisor: 1Mi");
        let own = "{ limits: { memory: 100Mi } }";
        assert_eq!(resource(&selector, own).as_deref(), Ok(expected));
    }
    let unknown = resource("containerName: none, resource: limits.cpu", "{}");
    assert_eq!(unknown, Err(EnvError::Container("none".to_owned())));
}

#[test]
fn expansion_as_in_the_kubelets_own_table() {
    let lookup = |name: &str| match name {
        "VAR_A" => Some("A"),
        "VAR_EMPTY" => Some(""),
        "VAR_REF" => Some("$(VAR_A)"),
        _ => None,
    };
    for (input, expected) in [
        ("$(VAR_A)", "A"),
        ("___$(VAR_A)___", "___A___"),
        ("$(VAR_A)_$(VAR_A)", "A_A"),
        ("$$(VAR_A)_$(VAR_A)", "$(VAR_A)_A"),
        ("$$$(VAR_A)", "$A"),
        ("$$$$(VAR_A)", "$$(VAR_A)"),
        ("$(VAR_REF)", "$(VAR_A)"),
        ("$(NO)", "$(NO)"),
        ("$(VAR_EMPTY)", ""),
        ("$(VAR_A", "$(VAR_A"),
        ("$VAR_A", "$VAR_A"),
        ("$", "$"),
        ("$$", "$"),
        ("a$", "a$"),
        ("$(", "$("),
        ("$()", "$()"),
        ("$é$(VAR_A)", "$éA"),
        ("$($(VAR_A)", "$($(VAR_A)"),
    ] {
        assert_eq!(expand(input, lookup), expected, "{input}");
    }
}

proptest! {
    #[test]
    fn text_without_dollars_is_left_alone(text in "[^$]{0,40}") {
        prop_assert_eq!(expand(&text, |_| Some("x")), text);
    }

    #[test]
    fn doubled_dollars_are_one_each(text in "[a-z$()é]{0,40}") {
        prop_assert_eq!(expand(&text.replace('$', "$$"), |_| Some("x")), text);
    }
}
