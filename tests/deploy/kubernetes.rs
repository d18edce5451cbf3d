//! `deploy/kubernetes/`, as kustomize renders it.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{Configuration, documents};
use crate::image;

/// The first with native sidecars by default, and the newest that the schemas know.
const VERSIONS: [&str; 2] = ["1.29", "1.37"];

/// What kustomize makes of a folder.
struct Rendered(Vec<Value>);

impl Rendered {
    fn of(folder: &str) -> Self {
        let mut kustomize = Command::new("kubectl");
        kustomize.args(["kustomize", &format!("deploy/kubernetes/{folder}")]);
        let rendered = kustomize.output().expect("kubectl runs: tests/run installs it");
        assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
        Self(documents(&String::from_utf8_lossy(&rendered.stdout), &VERSIONS))
    }

    fn only(&self, kind: &str) -> &Value {
        let mut of_kind = self.0.iter().filter(|document| document["kind"] == kind);
        let first = of_kind.next().unwrap_or_else(|| panic!("no {kind}"));
        assert!(of_kind.next().is_none(), "more than one {kind}");
        first
    }

    fn pod(&self) -> &Value {
        &self.only("Deployment")["spec"]["template"]["spec"]
    }

    fn configuration(&self) -> Configuration {
        let text = self.only("ConfigMap")["data"]["metorial-proxy.toml"].as_str().expect("a configuration");
        Configuration::new(text)
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

fn seconds(value: &Value) -> Duration {
    Duration::from_secs(value.as_u64().unwrap_or_else(|| panic!("no number: {value}")))
}

/// The longest that a probe takes to see that something has changed.
fn notices_within(probe: &Value) -> Duration {
    let failures = probe["failureThreshold"].as_u64().expect("a number");
    seconds(&probe["periodSeconds"]) * failures.try_into().expect("few") + seconds(&probe["timeoutSeconds"])
}

/// The variables of the image, and over them those of the container, as far as they have values.
fn variables(container: &Value) -> Vec<(String, String)> {
    let mut variables = image::environment();
    for variable in container["env"].as_array().into_iter().flatten() {
        let name = variable["name"].as_str().expect("a name");
        variables.retain(|(other, _)| other != name);
        if let Some(value) = variable["value"].as_str() {
            variables.push((name.to_owned(), value.to_owned()));
        }
    }
    variables
}

/// The proxy's container runs as it should, whatever is beside it.
#[track_caller]
fn has_no_rights(pod: &Value, container: &Value) {
    let own = &container["securityContext"];
    let context = |key: &str| if own[key].is_null() { &pod["securityContext"][key] } else { &own[key] };
    assert_eq!((context("runAsNonRoot"), &own["readOnlyRootFilesystem"]), (&json!(true), &json!(true)));
    assert!(context("runAsUser").as_u64().is_some_and(|user| user > 0));
    assert_eq!(own["allowPrivilegeEscalation"], false);
    assert_eq!(own["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(context("seccompProfile")["type"], "RuntimeDefault");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert!(container["lifecycle"].is_null(), "it stops by itself: a hook would only take from the time");
    assert!(container["resources"]["limits"]["memory"].is_string());
}

/// Everything that the configuration reads is mounted, from objects of these names.
#[track_caller]
fn mounts_what_it_reads(rendered: &Rendered, container: &Value) {
    let pod = rendered.pod();
    let mounted = |file: &str| -> &Value {
        let mounts = list(&container["volumeMounts"]);
        let mount = mounts.iter().find(|mount| {
            let path = mount["mountPath"].as_str().expect("a path");
            file.rsplit_once('/').is_some_and(|(folder, _)| folder == path)
        });
        let mount = mount.unwrap_or_else(|| panic!("{file} is not mounted"));
        assert_eq!(mount["readOnly"], true);
        let volume = list(&pod["volumes"]).iter().find(|volume| volume["name"] == mount["name"]);
        volume.expect("a volume")
    };
    for file in rendered.configuration().secret_files() {
        let secret = &mounted(&file)["secret"];
        assert!(secret["secretName"].is_string(), "{file} is in no secret");
    }
    let arguments = list(&container["args"]);
    let file = arguments.last().and_then(Value::as_str).expect("a file");
    assert_eq!(arguments[..2], [json!("run"), json!("--config")]);
    assert_eq!(mounted(file)["configMap"]["name"], rendered.only("ConfigMap")["metadata"]["name"]);
    let image = container["image"].as_str().expect("an image");
    assert_eq!(image, format!("registry.example.com/metorial-proxy:{}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_gateway_has_time_to_stop_and_everybody_hears_of_it_first() {
    let rendered = Rendered::of("gateway");
    let (pod, configuration) = (rendered.pod(), rendered.configuration());
    let container = &list(&pod["containers"])[0];
    let (settle, deadline) = configuration.drain();
    assert!(
        notices_within(&container["readinessProbe"]) <= settle,
        "it is out of the Service before it closes"
    );
    assert!(settle + configuration.request_timeout() <= deadline, "a request that came last has its time");
    // What the proxy does after the deadline: the last answers of the admin port, and what was spent.
    let after = Duration::from_secs(10);
    assert!(deadline + after <= seconds(&pod["terminationGracePeriodSeconds"]));
    for (probe, path) in
        [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")]
    {
        let get = &container[probe]["httpGet"];
        assert_eq!((&get["path"], &get["port"]), (&json!(path), &json!("admin")), "{probe}");
    }
    // A probe that never fails while it drains, and hardly while it is busy.
    assert!(notices_within(&container["livenessProbe"]) >= Duration::from_secs(30));
}

#[test]
fn the_gateway_is_reached_where_it_listens() {
    let rendered = Rendered::of("gateway");
    let configuration = rendered.configuration();
    let container = &list(&rendered.pod()["containers"])[0];
    let port = |name: &str| {
        let port = list(&container["ports"]).iter().find(|port| port["name"] == name).expect(name);
        format!("0.0.0.0:{}", port["containerPort"])
    };
    assert_eq!(configuration.texts("server.listen"), [port("http")]);
    assert_eq!(configuration.get("server.admin").and_then(toml::Value::as_str), Some(port("admin").as_str()));
    for (variable, name) in [("METORIAL_PROXY_LISTEN", "http"), ("METORIAL_PROXY_ADMIN", "admin")] {
        assert!(variables(container).contains(&(variable.to_owned(), port(name))), "{variable}");
    }
    let ports = list(&rendered.only("Service")["spec"]["ports"]);
    assert_eq!((ports.len(), &ports[0]["targetPort"]), (1, &json!("http")), "the admin port is not offered");
}

#[test]
fn the_parts_of_the_gateway_are_about_the_same_pods() {
    let rendered = Rendered::of("gateway");
    let deployment = rendered.only("Deployment");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let selectors = [
        &deployment["spec"]["selector"]["matchLabels"],
        &rendered.only("Service")["spec"]["selector"],
        &rendered.only("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        &rendered.only("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ];
    let spread = list(&rendered.pod()["topologySpreadConstraints"]);
    let spread = spread.iter().map(|constraint| &constraint["labelSelector"]["matchLabels"]);
    assert!(selectors.into_iter().chain(spread).all(|selector| selector == labels));
    let scaled = &rendered.only("HorizontalPodAutoscaler")["spec"];
    assert_eq!(
        (&scaled["scaleTargetRef"]["kind"], &scaled["scaleTargetRef"]["name"]),
        (&json!("Deployment"), &deployment["metadata"]["name"])
    );
    assert!(deployment["spec"]["replicas"].is_null(), "or each apply would undo what was scaled");
    let least = scaled["minReplicas"].as_u64().expect("a number");
    let configuration = rendered.configuration();
    let counted = configuration.get("store.min_replicas").and_then(toml::Value::as_integer);
    assert_eq!(counted, i64::try_from(least).ok());
    let unavailable = rendered.only("PodDisruptionBudget")["spec"]["maxUnavailable"].as_u64();
    assert!(unavailable.is_some_and(|unavailable| 0 < unavailable && unavailable < least));
    assert_eq!(deployment["spec"]["strategy"]["rollingUpdate"], json!({"maxUnavailable": 0, "maxSurge": 1}));
}

#[test]
fn the_gateway_may_do_little_and_reads_what_is_mounted() {
    let rendered = Rendered::of("gateway");
    let container = &list(&rendered.pod()["containers"])[0];
    has_no_rights(rendered.pod(), container);
    mounts_what_it_reads(&rendered, container);
    let policy = &rendered.only("NetworkPolicy")["spec"];
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    let open = list(&policy["egress"]).iter().any(|rule| rule["to"].is_null() || rule["ports"].is_null());
    assert!(!open, "a rule without an end is no rule");
    let blocks = list(&policy["egress"]).iter().flat_map(|rule| list(&rule["to"]));
    let blocks: Vec<&Value> = blocks.map(|to| &to["ipBlock"]).filter(|block| !block.is_null()).collect();
    assert!(blocks.iter().any(|block| list(&block["except"]).contains(&json!("169.254.0.0/16"))));
}

#[test]
fn the_gateway_s_configuration_is_good() {
    let rendered = Rendered::of("gateway");
    let set = variables(&list(&rendered.pod()["containers"])[0]);
    let set: Vec<(&str, &str)> = set.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    rendered.configuration().is_good("gateway", &set);
    let per_node = [set, vec![("METORIAL_PROXY_EGRESS_GROUP", "node-1.example.com")]].concat();
    rendered.configuration().is_good("gateway-per-node", &per_node);
}

#[test]
fn the_sidecar_starts_first_stops_last_and_is_on_loopback_alone() {
    let rendered = Rendered::of("sidecar");
    let (pod, configuration) = (rendered.pod(), rendered.configuration());
    let (sidecar, application) = (&list(&pod["initContainers"])[0], &list(&pod["containers"])[0]);
    assert_eq!(sidecar["restartPolicy"], "Always");
    has_no_rights(pod, sidecar);
    mounts_what_it_reads(&rendered, sidecar);
    let (settle, deadline) = configuration.drain();
    assert_eq!(settle, Duration::ZERO, "nobody is left who would have to hear of it");
    assert!(deadline + Duration::from_secs(10) <= seconds(&pod["terminationGracePeriodSeconds"]));
    for probe in ["startupProbe", "livenessProbe"] {
        assert_eq!(sidecar[probe]["exec"]["command"], json!(["/metorial-proxy", "health"]), "{probe}");
    }
    assert!(sidecar["ports"].is_null());
    let [listen] = &configuration.texts("server.listen")[..] else { panic!("one address") };
    let set = variables(sidecar);
    assert!(set.contains(&("METORIAL_PROXY_LISTEN".to_owned(), listen.clone())), "{set:?}");
    assert!(set.iter().all(|(_, address)| address.starts_with("127.0.0.1:")), "{set:?}");
    let set: Vec<(&str, &str)> = set.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    configuration.is_good("sidecar", &set);
    // The application calls it, and holds no key.
    assert_eq!(application["env"], json!([{"name": "METORIAL_URL", "value": format!("http://{listen}")}]));
    assert!(application["volumeMounts"].is_null());
}
