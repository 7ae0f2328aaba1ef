// Command linkerd_identity stands in for linkerd-identity, whose packages no module proxy serves.
//
// It has what sets the speed of the original: gRPC without TLS, a TokenReview for each call through
// client-go with the original's limiter, Go's crypto, an event for each certificate, and a line in the
// log. It is built inside the Go module of the peers, and takes the flags that their README asks for.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	linkerd "github.com/linkerd/linkerd2-proxy-api/go/identity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	authentication "k8s.io/api/authentication/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typed "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
)

const (
	audience  = "identity.l5d.io"
	namespace = "linkerd"
	domain    = "identity.linkerd.cluster.local"
	lifetime  = 24 * time.Hour
	skew      = 20 * time.Second
)

type server struct {
	linkerd.UnimplementedIdentityServer
	client *kubernetes.Clientset // nil: any token will do
	events record.EventRecorder
	issuer *x509.Certificate
	key    *ecdsa.PrivateKey
	serial atomic.Int64
}

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "address to serve on, without TLS")
	auth := flag.String("auth", "none", "who is asking: kube (TokenReview) or none")
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig for -auth kube")
	qps := flag.Float64("kube-qps", 100, "Kubernetes client: requests per second; 1e9 is no limit")
	burst := flag.Int("kube-burst", 200, "Kubernetes client: burst")
	rootOut := flag.String("root-out", "", "write the root certificate here")
	flag.Parse()
	if err := serve(*addr, *auth, *kubeconfig, float32(*qps), *burst, *rootOut); err != nil {
		log.Fatalln("linkerd_identity:", err)
	}
}

func serve(addr, auth, kubeconfig string, qps float32, burst int, rootOut string) error {
	s := &server{}
	if auth == "kube" {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return err
		}
		config.QPS, config.Burst = qps, burst
		if s.client, err = kubernetes.NewForConfig(config); err != nil {
			return err
		}
		broadcaster := record.NewBroadcaster()
		broadcaster.StartRecordingToSink(&typed.EventSinkImpl{Interface: s.client.CoreV1().Events("")})
		s.events = broadcaster.NewRecorder(scheme.Scheme, core.EventSource{Component: "linkerd-identity"})
	}
	if err := s.newIssuer(); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.issuer.Raw})
	if err := os.WriteFile(rootOut, root, 0o644); err != nil {
		return err
	}
	plain := grpc.NewServer(grpc.MaxConcurrentStreams(0))
	linkerd.RegisterIdentityServer(plain, s)
	return plain.Serve(listener)
}

// newIssuer makes what `linkerd install` makes: one P-256 certificate, issuer and root.
func (s *server) newIssuer() (err error) {
	if s.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: domain},
		NotBefore:             time.Now().Add(-skew),
		NotAfter:              time.Now().Add(365 * lifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, s.key.Public(), s.key)
	if err != nil {
		return err
	}
	s.issuer, err = x509.ParseCertificate(der)
	s.serial.Store(1)
	return err
}

func (s *server) Certify(ctx context.Context, in *linkerd.CertifyRequest) (*linkerd.CertifyResponse, error) {
	csr, err := x509.ParseCertificateRequest(in.GetCertificateSigningRequest())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if len(csr.DNSNames) != 1 || csr.DNSNames[0] != in.GetIdentity() {
		return nil, status.Error(codes.FailedPrecondition, "CSR name does not match requested identity")
	}
	account, err := s.review(ctx, string(in.GetToken()))
	if err != nil {
		return nil, err
	}
	if s.client != nil && account.identity() != in.GetIdentity() {
		return nil, status.Error(codes.FailedPrecondition, "requested identity did not match provided token")
	}
	leaf, until, err := s.sign(csr)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	text := fmt.Sprintf("issued certificate for %s until %s: %x", in.GetIdentity(), until, sha256.Sum256(leaf))
	log.Println(text)
	if s.events != nil {
		object := &core.ServiceAccount{ObjectMeta: meta.ObjectMeta{Namespace: account.namespace, Name: account.name}}
		s.events.Event(object, core.EventTypeNormal, "IssuedLeafCertificate", text)
	}
	return &linkerd.CertifyResponse{
		LeafCertificate:          leaf,
		IntermediateCertificates: [][]byte{s.issuer.Raw},
		ValidUntil:               timestamppb.New(until),
	}, nil
}

type account struct{ namespace, name string }

func (a account) identity() string {
	return fmt.Sprintf("%s.%s.serviceaccount.%s", a.name, a.namespace, domain)
}

func (s *server) review(ctx context.Context, token string) (account, error) {
	if s.client == nil {
		return account{}, nil
	}
	review := &authentication.TokenReview{
		Spec: authentication.TokenReviewSpec{Token: token, Audiences: []string{audience}},
	}
	found, err := s.client.AuthenticationV1().TokenReviews().Create(ctx, review, meta.CreateOptions{})
	if err != nil {
		return account{}, status.Error(codes.Internal, err.Error())
	}
	if found.Status.Error != "" || !found.Status.Authenticated {
		return account{}, status.Error(codes.FailedPrecondition, "authentication token could not be authenticated")
	}
	parts := strings.Split(found.Status.User.Username, ":")
	if len(parts) != 4 {
		return account{}, status.Error(codes.InvalidArgument, "Username must be in form system:TYPE:NS:SA")
	}
	return account{namespace: parts[2], name: parts[3]}, nil
}

func (s *server) sign(csr *x509.CertificateRequest) ([]byte, time.Time, error) {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(s.serial.Add(1)),
		Subject:      csr.Subject,
		DNSNames:     csr.DNSNames,
		NotBefore:    now.Add(-skew),
		NotAfter:     now.Add(lifetime + skew),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, s.issuer, csr.PublicKey, s.key)
	return der, template.NotAfter, err
}
