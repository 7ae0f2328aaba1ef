// Command istio_client asks a CA for one certificate with Istio's own client and its own CSR, as istio-agent
// does, and prints what came as JSON.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"istio.io/istio/pkg/log"
	pkiutil "istio.io/istio/security/pkg/pki/util"
)

type options struct {
	address, serverName, roots string
	token, cert, key           string
	cluster, signer            string
	csr, identity              string
	ttl                        int64
	storm                      int
	within                     time.Duration
	cacerts                    string
}

// answer is what is printed. Either the chain is there, or the code and the error.
type answer struct {
	Chain []string `json:"chain"`
	CSR   string   `json:"csr"`
	Key   string   `json:"key"`
	Code  string   `json:"code"`
	Error string   `json:"error"`
}

func main() {
	var o options
	flag.StringVar(&o.address, "address", "", "host:port of the CA")
	flag.StringVar(&o.serverName, "server-name", "", "name to expect in the CA's certificate (default: the host)")
	flag.StringVar(&o.roots, "roots", "", "PEM file with the trust anchors of the CA's certificate")
	flag.StringVar(&o.token, "token", "", "file with the service-account token")
	flag.StringVar(&o.cert, "cert", "", "client certificate with its chain (PEM file)")
	flag.StringVar(&o.key, "key", "", "key of the client certificate (PEM file)")
	flag.StringVar(&o.cluster, "cluster", "Kubernetes", "cluster ID to send")
	flag.StringVar(&o.signer, "signer", "", "CertSigner to send")
	flag.StringVar(&o.csr, "csr", "p256", "key of the CSR: rsa2048, rsa4096, p256 or p384")
	flag.StringVar(&o.identity, "identity", "spiffe://cluster.local/ns/shop/sa/web", "SPIFFE ID in the CSR")
	flag.Int64Var(&o.ttl, "ttl", 86400, "wanted lifetime in seconds")
	flag.IntVar(&o.storm, "storm", 0, "so many clients at once; -token is then a folder with their tokens: 0, 1, 2 ...")
	flag.DurationVar(&o.within, "within", 0, "spread the clients of a storm evenly over this time")
	flag.StringVar(&o.cacerts, "cacerts", "", "folder with istiod's plugged-in CA: only read it, as istiod does")
	flag.Parse()
	quiet(o)
	var out any
	var err error
	if o.cacerts != "" {
		out, err = readCACerts(o.cacerts)
	} else if o.storm > 0 {
		out, err = storm(o)
	} else {
		out, err = ask(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "istio_client:", err)
		os.Exit(2)
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fmt.Fprintln(os.Stderr, "istio_client:", err)
		os.Exit(2)
	}
}

// readCACerts reads and verifies the files of a plugged-in CA; the root is the answer.
func readCACerts(folder string) (answer, error) {
	file := func(name string) string { return filepath.Join(folder, name) }
	chain := []string{file("cert-chain.pem")}
	bundle, err := pkiutil.NewVerifiedKeyCertBundleFromFile(
		file("ca-cert.pem"), file("ca-key.pem"), chain, file("root-cert.pem"), "")
	if err != nil {
		return answer{Code: "Refused", Error: err.Error()}, nil
	}
	return answer{Chain: []string{string(bundle.GetRootCertPem())}, Code: "OK"}, nil
}

// quiet moves Istio's log from stdout, where the answer goes, to stderr. A storm has none: it would cost more
// than the calls.
func quiet(o options) {
	logging := log.DefaultOptions()
	logging.OutputPaths = []string{"stderr"}
	if o.storm > 0 {
		for _, scope := range log.Scopes() {
			scope.SetOutputLevel(log.NoneLevel)
			logging.SetDefaultOutputLevel(scope.Name(), log.NoneLevel)
		}
	}
	if err := log.Configure(logging); err != nil {
		fmt.Fprintln(os.Stderr, "istio_client:", err)
		os.Exit(2)
	}
}

func ask(o options) (*answer, error) {
	csr, key, err := newCSR(o)
	if err != nil {
		return nil, err
	}
	client, err := newClient(o, o.token)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	out := &answer{CSR: string(csr), Key: string(key), Code: "OK"}
	if out.Chain, err = client.CSRSign(csr, o.ttl); err != nil {
		out.Code, out.Error = code(err), err.Error()
	}
	return out, nil
}

// newCSR makes the CSR that istio-agent would (security/pkg/nodeagent/cache/secretcache.go).
func newCSR(o options) (csr, key []byte, err error) {
	wanted := pkiutil.CertOptions{Host: o.identity, PKCS8Key: true}
	switch o.csr {
	case "rsa2048":
		wanted.RSAKeySize = 2048
	case "rsa4096":
		wanted.RSAKeySize = 4096
	case "p256":
		wanted.ECSigAlg, wanted.ECCCurve = pkiutil.EcdsaSigAlg, pkiutil.P256Curve
	case "p384":
		wanted.ECSigAlg, wanted.ECCCurve = pkiutil.EcdsaSigAlg, pkiutil.P384Curve
	default:
		return nil, nil, fmt.Errorf("-csr %q: want rsa2048, rsa4096, p256 or p384", o.csr)
	}
	return pkiutil.GenCSR(wanted)
}

var errNotPEM = errors.New("the leaf is not PEM")

var rpcError = regexp.MustCompile(`code = (\w+) desc = `)

// code finds the gRPC code in the text: Istio's client wraps the error with %v, so its type is lost.
func code(err error) string {
	if found := rpcError.FindStringSubmatch(err.Error()); found != nil {
		return found[1]
	}
	return "client"
}
