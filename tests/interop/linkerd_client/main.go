// Command linkerd_client asks for certificates with Linkerd's published API and a CSR like the one of its
// proxy-identity, as a proxy does, and prints what came as JSON.
//
// One client asks at once; -clients lets many ask, each over a connection of its own, spread over -within.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/linkerd/linkerd2-proxy-api/go/identity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

type options struct {
	address, authority        string
	identity, token, requests string
	clients                   int
	within, patience          time.Duration
}

// request is one client's: made before the clock starts.
type request struct {
	identity string
	token    []byte
	csr, key []byte
}

// answer is what one client got. Either the certificates are there, or the code and the error.
type answer struct {
	Identity      string     `json:"identity"`
	CSR           []byte     `json:"csr"` // DER; bytes are base64 in JSON
	Key           string     `json:"key"` // PKCS#8 PEM
	Leaf          []byte     `json:"leaf"`
	Intermediates [][]byte   `json:"intermediates"`
	ValidUntil    *time.Time `json:"valid_until"`
	Code          string     `json:"code"`
	Error         string     `json:"error"`
}

func main() {
	var o options
	flag.StringVar(&o.address, "address", "", "host:port of the CA")
	flag.StringVar(&o.authority, "authority", "linkerd-identity-headless.linkerd.svc.cluster.local.:8080",
		":authority to send; a proxy's has a dot behind the name")
	flag.StringVar(&o.identity, "identity", "", "name to ask for")
	flag.StringVar(&o.token, "token", "", "file with the token; its bytes are sent as they are")
	flag.StringVar(&o.requests, "requests", "", "in place of both: file with a name, a space and a token a line, used in turn")
	flag.IntVar(&o.clients, "clients", 1, "how many ask")
	flag.DurationVar(&o.within, "within", 0, "spread the clients evenly over this time")
	flag.DurationVar(&o.patience, "patience", 60*time.Second, "how long to wait for the last answer")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "linkerd_client:", err)
		os.Exit(2)
	}
}

func run(o options) error {
	requests, err := newRequests(o)
	if err != nil {
		return err
	}
	answers := make([]answer, len(requests))
	// Not a deadline of the call: gRPC would tell the server, and a proxy tells none.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer time.AfterFunc(o.patience, cancel).Stop()
	var clients sync.WaitGroup
	start := time.Now()
	for i := range requests {
		clients.Go(func() {
			time.Sleep(time.Until(start.Add(o.within * time.Duration(i) / time.Duration(len(requests)))))
			answers[i] = ask(ctx, o, requests[i])
		})
	}
	clients.Wait()
	return json.NewEncoder(os.Stdout).Encode(answers)
}

// ask opens a connection and asks once, as linkerd2-proxy does (linkerd/proxy/identity-client/src/certify.rs).
func ask(ctx context.Context, o options, r request) answer {
	out := answer{Identity: r.identity, CSR: r.csr, Key: string(r.key)}
	reply, err := certify(ctx, o, r)
	out.Code = status.Code(err).String()
	if err != nil {
		out.Error = status.Convert(err).Message()
		return out
	}
	out.Leaf, out.Intermediates = reply.GetLeafCertificate(), reply.GetIntermediateCertificates()
	if reply.GetValidUntil() != nil {
		until := reply.GetValidUntil().AsTime()
		out.ValidUntil = &until
	}
	return out
}

func certify(ctx context.Context, o options, r request) (*identity.CertifyResponse, error) {
	conn, err := grpc.NewClient("passthrough:///"+o.address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority(o.authority), grpc.WithDisableRetry())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return identity.NewIdentityClient(conn).Certify(ctx, &identity.CertifyRequest{
		Identity:                  r.identity,
		Token:                     r.token,
		CertificateSigningRequest: r.csr,
	})
}

func newRequests(o options) ([]request, error) {
	callers, err := readCallers(o)
	if err != nil {
		return nil, err
	}
	out := make([]request, o.clients)
	for i := range out {
		out[i] = callers[i%len(callers)]
		if out[i].csr, out[i].key, err = newCSR(out[i].identity); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func readCallers(o options) ([]request, error) {
	if o.requests == "" {
		token, err := os.ReadFile(o.token)
		return []request{{identity: o.identity, token: token}}, err
	}
	data, err := os.ReadFile(o.requests)
	if err != nil {
		return nil, err
	}
	var out []request
	for line := range strings.Lines(string(data)) {
		name, token, found := strings.Cut(strings.TrimSpace(line), " ")
		if !found {
			return nil, fmt.Errorf("%s: want a name, a space and a token on each line", o.requests)
		}
		out = append(out, request{identity: name, token: []byte(token)})
	}
	if len(out) == 0 {
		return nil, errors.New(o.requests + ": is empty")
	}
	return out, nil
}

// newCSR makes what proxy-identity does (proxy-identity/main.go in linkerd2): a P-256 key, and a request signed
// with ECDSA and SHA-256 whose CommonName and only DNS SAN are the name, however long it is.
func newCSR(name string) (csr, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}}
	if csr, err = x509.CreateCertificateRequest(rand.Reader, template, private); err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	return csr, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), err
}
